"""Reads a manifest that nobody has vouched for; whatever passes here is safe to act on.

The order matters: size, JSON, schema number (so that a newer manifest is called newer, not
broken), types, paths, bounds, and last what only the fields together can tell.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from edgekit import codec
from edgekit.errors import BundleError
from edgekit.manifest_schema import MAX_FILE_BYTES, SCHEMA, first_violation
from edgekit.types import (
    BYTES_PER_ELEMENT,
    Artifact,
    Golden,
    Manifest,
    Preprocess,
    RawFile,
    RawTensor,
    TensorSpec,
)

MANIFEST = "manifest.json"
RECIPE = "recipe.json"
LABELS = "labels.txt"
MAX_MANIFEST_BYTES = 16 * 2**20
"""Far above what a thousand artifacts need, and parsed in a second or two."""


def read_manifest(data: bytes, *, where: str) -> Manifest:
    """Checks the content of a ``manifest.json`` completely, except for the files it lists.

    Args:
        data: the bytes of the file.
        where: what the file is called in errors.

    Raises:
        BundleError: names the field and says what is wrong with it.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleError(f"{where}: larger than {MAX_MANIFEST_BYTES} bytes.")
    document = codec.parse_json(data, where=where)
    if not isinstance(document, dict):
        raise BundleError(f"{where}: not a JSON object.")
    schema = document.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise BundleError(f"{where}: schema: {schema!r:.80} is not a schema number.")
    if schema > SCHEMA:
        raise BundleError(
            f"{where}: schema {schema} is newer than what this edgekit reads ({SCHEMA}).",
            remedy="Upgrade edgekit: pip install --upgrade edgekit",
        )
    manifest = codec.from_json(Manifest, document, where=where)
    if problem := first_problem(manifest):
        raise BundleError(f"{where}: {problem}.")
    return manifest


def listed_files(manifest: Manifest) -> tuple[RawFile, ...]:
    """All files of a bundle except the manifest itself, in the order of the manifest."""
    return tuple(file for _, file in _listed(manifest))


def golden_tensors(golden: Golden) -> Iterator[tuple[str, RawTensor]]:
    """All tensors of the golden vectors, each with its place in the manifest."""
    groups = [("inputs", golden.inputs), ("outputs", golden.outputs)]
    groups += [(f"artifact_outputs.{id}", t) for id, t in golden.artifact_outputs.items()]
    for name, tensors in groups:
        for i, tensor in enumerate(tensors):
            yield f"golden.{name}[{i}]", tensor
    if golden.labels is not None:
        yield "golden.labels", golden.labels


def tensor_nbytes(tensor: RawTensor) -> int:
    """The exact size in bytes of a raw tensor file."""
    return math.prod(tensor.shape) * BYTES_PER_ELEMENT[tensor.dtype]


def path_problem(path: str) -> str:
    """Why ``path`` may not stand in a manifest, or an empty string."""
    if any(ord(c) < 32 or ord(c) == 127 for c in path):
        return "has a control character"
    if path.startswith(("/", "~")) or "\\" in path or ":" in path:
        return "is not a relative path with forward slashes"
    parts = path.split("/")
    if ".." in parts:
        return "leaves the bundle"
    if any(part == "" or part.startswith(".") for part in parts):
        return "has an empty or hidden component"
    return ""


def first_problem(manifest: Manifest) -> str:
    """The first thing that is wrong with a manifest of the right types, or an empty string."""
    for field, path in _paths(manifest):
        if problem := path_problem(path):
            return f"{field}: {path!r:.200} {problem}"
    return first_violation(manifest) or next(_inconsistencies(manifest), "")


def _paths(manifest: Manifest) -> Iterator[tuple[str, str]]:
    for i, artifact in enumerate(manifest.artifacts):
        yield f"artifacts[{i}].path", artifact.path
    for field, tensor in golden_tensors(manifest.golden):
        yield f"{field}.path", tensor.path
    for i, file in enumerate(manifest.files):
        yield f"files[{i}].path", file.path


def _listed(manifest: Manifest) -> Iterator[tuple[str, RawFile]]:
    for i, a in enumerate(manifest.artifacts):
        yield f"artifacts[{i}]", RawFile(a.path, a.sha256, a.size_bytes)
    for field, t in golden_tensors(manifest.golden):
        yield field, RawFile(t.path, t.sha256, tensor_nbytes(t))
    for i, file in enumerate(manifest.files):
        yield f"files[{i}]", file


def _inconsistencies(manifest: Manifest) -> Iterator[str]:
    yield from _file_clashes(manifest)
    yield from _misplaced(manifest)
    ids = [artifact.id for artifact in manifest.artifacts]
    if twice := _first_duplicate(ids):
        yield f"artifacts: the id {twice!r} occurs twice"
    model = manifest.model
    if model.preprocess is not None:
        yield from _bad_preprocess(model.preprocess)
    for field, specs in (("inputs", model.inputs), ("outputs", model.outputs)):
        yield from _bad_specs(f"model.{field}", specs)
    for i, artifact in enumerate(manifest.artifacts):
        yield from _bad_artifact(f"artifacts[{i}]", artifact, manifest)
    yield from _bad_golden(manifest)
    yield from _bad_evals(manifest, ids)


def _file_clashes(manifest: Manifest) -> Iterator[str]:
    """Two names that are one file on some file system, or a file that is also a folder."""
    seen: dict[str, str] = {_folded(MANIFEST): MANIFEST}
    for field, file in _listed(manifest):
        if file.size_bytes > MAX_FILE_BYTES:
            yield f"{field}: {file.size_bytes} bytes are too many"
        key = _folded(file.path)
        if key in seen:
            yield f"{field}.path: {file.path!r} and {seen[key]!r} name the same file"
        seen[key] = file.path
    for key, path in seen.items():
        for parent in PurePosixPath(key).parents:
            if str(parent) in seen:
                yield f"{path!r} lies in {seen[str(parent)]!r}, which is a file"


def _misplaced(manifest: Manifest) -> Iterator[str]:
    """Each kind of file has its place, so that a reader can tell a bundle from any other folder."""
    for i, artifact in enumerate(manifest.artifacts):
        folder, _, name = artifact.path.rpartition("/")
        extension = name.removeprefix(artifact.id)
        # Apps find an artifact's file by its id.
        if folder != "artifacts" or extension == name or not extension.startswith("."):
            yield (
                f"artifacts[{i}].path: {artifact.path!r} is not artifacts/{artifact.id} with an"
                " extension"
            )
    for field, tensor in golden_tensors(manifest.golden):
        if not tensor.path.startswith("golden/"):
            yield f"{field}.path: {tensor.path!r} is not in golden/"
    paths = [file.path for file in manifest.files]
    if RECIPE not in paths:
        yield f"files: {RECIPE} is missing"
    for i, path in enumerate(paths):
        if path not in (RECIPE, LABELS):
            yield f"files[{i}].path: {path!r} is neither {RECIPE} nor {LABELS}"


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _bad_preprocess(preprocess: Preprocess) -> Iterator[str]:
    channels = 1 if preprocess.color == "L" else 3
    for field, values in (("mean", preprocess.mean), ("std", preprocess.std)):
        if len(values) != channels:
            yield (
                f"model.preprocess.{field}: {len(values)} entries, but {preprocess.color} has"
                f" {channels} channels"
            )


def _bad_specs(field: str, specs: Sequence[TensorSpec]) -> Iterator[str]:
    if twice := _first_duplicate([spec.name for spec in specs]):
        yield f"{field}: the name {twice!r:.80} occurs twice"


def _bad_artifact(field: str, artifact: Artifact, manifest: Manifest) -> Iterator[str]:
    if artifact.precision != artifact.recipe.precision:
        yield f"{field}.precision: {artifact.precision}, but its recipe is {artifact.recipe.name}"
    for side in ("inputs", "outputs"):
        own: Sequence[TensorSpec] = getattr(artifact, side)
        model: Sequence[TensorSpec] = getattr(manifest.model, side)
        yield from _bad_specs(f"{field}.{side}", own)
        if _forms(own) != _forms(model):
            yield f"{field}.{side}: {_forms(own)} differ from the model's {_forms(model)}"


def _bad_golden(manifest: Manifest) -> Iterator[str]:
    golden = manifest.golden
    groups = [
        ("inputs", golden.inputs, manifest.model.inputs),
        ("outputs", golden.outputs, manifest.model.outputs),
    ]
    if set(golden.artifact_outputs) != {artifact.id for artifact in manifest.artifacts}:
        yield "golden.artifact_outputs: the keys are not the ids of the artifacts"
    for artifact in manifest.artifacts:
        tensors = golden.artifact_outputs.get(artifact.id, ())
        groups.append((f"artifact_outputs.{artifact.id}", tensors, artifact.outputs))
    for name, tensors, specs in groups:
        if [tensor.name for tensor in tensors] != [spec.name for spec in specs]:
            yield f"golden.{name}: the names are not those of the tensors they belong to"
        stacked = [(spec.dtype, (golden.n, *spec.shape)) for spec in specs]
        if _forms(tensors) != stacked:
            yield f"golden.{name}: {_forms(tensors)} should be {stacked}"
    if golden.labels is not None and _forms([golden.labels]) != [("int64", (golden.n,))]:
        yield f"golden.labels: {_forms([golden.labels])} should be one int64 for each sample"
    if golden.metric == "top1" and golden.labels is None:
        yield "golden.metric: top1 needs labels"


def _bad_evals(manifest: Manifest, ids: Sequence[str]) -> Iterator[str]:
    sets: dict[str, str] = {}
    for i, evaluation in enumerate(manifest.evals):
        field = f"evals[{i}]"
        if sets.setdefault(evaluation.set_id, evaluation.role) != evaluation.role:
            yield f"{field}.set_id: one set both chooses and reports"
        if twice := _first_duplicate([r.artifact_id for r in evaluation.results]):
            yield f"{field}.results: {twice!r} occurs twice"
        for j, result in enumerate(evaluation.results):
            if result.artifact_id not in ids:
                yield f"{field}.results[{j}].artifact_id: no artifact is {result.artifact_id!r}"
    if twice := _first_duplicate([f"{e.role} {e.set_id}" for e in manifest.evals]):
        yield f"evals: {twice!r} occurs twice"


def _forms(tensors: Sequence[TensorSpec | RawTensor]) -> list[tuple[str, tuple[int, ...]]]:
    return [(tensor.dtype, tensor.shape) for tensor in tensors]


def _first_duplicate(names: Iterable[str]) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""
