"""A bundle on disk: a folder with ``manifest.json``, artifacts and golden vectors, all hashed.

Opening one checks everything before anything is loaded; writing one replaces the old one whole.
The fields of the manifest are described in docs/manifest.md.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import stat
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgekit import codec
from edgekit.bundle_check import check_folder, refuse_to_replace
from edgekit.bundle_tar import unpack_tar, write_tar
from edgekit.errors import BundleError
from edgekit.files import remove_stale_staging, sha256_file, staged_dir
from edgekit.manifest_check import (
    LABELS,
    MANIFEST,
    RECIPE,
    golden_tensors,
    listed_files,
    path_problem,
    tensor_nbytes,
)
from edgekit.manifest_schema import SCHEMA
from edgekit.types import (
    BYTES_PER_ELEMENT,
    Artifact,
    CandidateFailure,
    Evaluation,
    Golden,
    Manifest,
    ModelSpec,
    RawFile,
    RawTensor,
    RecipeLog,
    RungResult,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Bundle:
    """An opened and checked bundle.

    Attributes:
        path: its folder (of a ``.tar``, where it was unpacked).
        manifest: what it holds.
        digest: SHA-256 of ``manifest.json`` as 64 hex digits; as the manifest has the hashes of
            all files, it stands for the whole content.
    """

    path: Path
    manifest: Manifest
    digest: str
    _remove: Callable[[], object] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, verify: bool = True, extract_to: Path | None = None
    ) -> Bundle:
        """Opens a bundle folder, or a ``.tar`` of one.

        Args:
            path: the folder or archive.
            verify: re-hash all files. Without it the manifest, the file types and the sizes are
                still checked.
            extract_to: where to unpack an archive; must be absent or empty. Without it a temporary
                folder is used that lives as long as the bundle object.

        Raises:
            BundleError: where anything is damaged, missing, not listed, or not safe.
        """
        source = Path(path)
        if not source.exists():
            with contextlib.suppress(OSError):  # puts back what a crashed writer moved aside
                remove_stale_staging(source.parent)
        if source.is_dir():
            return cls._open_dir(source.resolve(), str(source), verify)
        if not source.is_file():
            raise BundleError(
                f"{source}: no such bundle.",
                remedy="Make one with: edgekit quantize MODEL -o BUNDLE",
            )
        if extract_to is not None:
            refuse_to_replace(extract_to, bundles_too=True)
            with staged_dir(extract_to) as staging:
                unpack_tar(source, staging)
                cls._open_dir(staging, str(source), verify)
            return cls._open_dir(extract_to.resolve(), str(source), verify=False)
        folder = Path(tempfile.mkdtemp(prefix="edgekit-bundle-")).resolve()
        try:
            unpack_tar(source, folder)
            bundle = cls._open_dir(folder, str(source), verify)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finalizer = weakref.finalize(bundle, shutil.rmtree, folder, ignore_errors=True)
        object.__setattr__(bundle, "_remove", finalizer)
        return bundle

    @classmethod
    def _open_dir(cls, folder: Path, where: str, verify: bool) -> Bundle:
        try:
            manifest, digest = check_folder(folder, where=where, verify=verify)
        except OSError as e:
            name = str(e.filename)[-200:]
            raise BundleError(f"{where}: cannot be read: {e.strerror} ({name}).") from e
        return cls(folder, manifest, digest)

    @property
    def files(self) -> tuple[RawFile, ...]:
        """All files but the manifest, with size and hash."""
        return listed_files(self.manifest)

    @property
    def recipe_log(self) -> RecipeLog:
        """How the artifacts were made, and the candidates that could not be made."""
        path = self.file(RECIPE)
        return codec.from_json(RecipeLog, path.read_bytes(), where=str(path))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The lines of ``labels.txt``; empty where the classes have no names."""
        if LABELS not in {file.path for file in self.files}:
            return ()
        return tuple(self.file(LABELS).read_text(encoding="utf-8").splitlines())

    def file(self, path: str) -> Path:
        """The absolute path of a listed file (or of ``manifest.json``) that is still regular."""
        listed = {file.path: file.size_bytes for file in self.files}
        if path != MANIFEST and path not in listed:
            raise BundleError(f"{self.path}: {path!r:.200} is not in the manifest.")
        full = self.path / path
        try:
            status = full.lstat()
        except OSError as e:
            raise BundleError(f"{full}: cannot be read: {e.strerror}.") from e
        if not stat.S_ISREG(status.st_mode) or full.resolve() != full:
            raise BundleError(f"{full}: is or lies behind a link, or is no regular file.")
        if listed.get(path, status.st_size) != status.st_size:
            raise BundleError(f"{full}: has changed since the bundle was opened.")
        return full

    def artifact(self, id: str) -> Artifact:
        """The artifact with this id."""
        for artifact in self.manifest.artifacts:
            if artifact.id == id:
                return artifact
        known = ", ".join(artifact.id for artifact in self.manifest.artifacts)
        raise BundleError(f"{self.path}: no artifact {id!r:.200}.", remedy=f"There are: {known}")

    def tensor(self, tensor: RawTensor) -> NDArray[Any]:
        """A golden tensor as a read-only, memory-mapped array of its own shape and dtype."""
        import numpy as np

        path = self.file(tensor.path)
        if path.stat().st_size != tensor_nbytes(tensor):
            raise BundleError(f"{path}: size does not fit {tensor.dtype} {tensor.shape}.")
        dtype = np.dtype(tensor.dtype).newbyteorder("<")
        return np.memmap(path, dtype=dtype, mode="r", shape=tensor.shape)

    def pack(self, tar_path: Path) -> None:
        """Writes the bundle as one ``.tar``; the same bundle gives the same bytes."""
        write_tar(self.path, [file.path for file in self.files], tar_path)

    def close(self) -> None:
        """Removes the temporary folder of a bundle that was opened from an archive."""
        if self._remove is not None:
            self._remove()

    def __enter__(self) -> Bundle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def write_bundle(
    dest: Path,
    *,
    model: ModelSpec,
    artifacts: Sequence[Artifact],
    golden: Golden,
    evals: Sequence[Evaluation],
    files: Mapping[str, Path],
    failures: Sequence[CandidateFailure] = (),
    ladders: Mapping[str, tuple[RungResult, ...]] | None = None,
    class_names: Sequence[str] = (),
) -> Bundle:
    """Writes a bundle folder; an older bundle there is replaced in one step, or not at all.

    Args:
        dest: the folder. It must be absent, empty, or a bundle.
        files: for each path that ``artifacts`` and ``golden`` name, the file to copy.
        failures: candidates that could not be made, for ``recipe.json``.
        ladders: for ``recipe.json``, by artifact id, the rungs that were tried.
        class_names: one name per class, for ``labels.txt``; none written when empty.

    Raises:
        BundleError: where ``dest`` holds something else, or the parts do not make a valid bundle.
    """
    refuse_to_replace(dest, bundles_too=False)
    named = {a.path for a in artifacts} | {t.path for _, t in golden_tensors(golden)}
    if odd := sorted(named ^ set(files)):
        why = "no file given for" if odd[0] in named else "neither artifact nor tensor:"
        raise BundleError(f"{dest}: {why} {odd[0]!r:.200}.")
    recipes = RecipeLog(
        SCHEMA, {a.id: a.recipe for a in artifacts}, tuple(failures), dict(ladders or {})
    )
    texts = {RECIPE: codec.to_json(recipes, indent=2) + "\n"}
    if class_names:
        if any(len(name.splitlines()) != 1 for name in class_names):
            raise BundleError(f"{dest}: a class name is empty or has more than one line.")
        texts[LABELS] = "".join(f"{name}\n" for name in class_names)
    with staged_dir(dest) as staging:
        for path, source in files.items():
            if problem := path_problem(path):
                raise BundleError(f"{dest}: {path!r:.200} {problem}.")
            target = staging / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        for path, text in texts.items():
            (staging / path).write_text(text, encoding="utf-8", newline="\n")
        extra = tuple(
            RawFile(path, sha256_file(staging / path), (staging / path).stat().st_size)
            for path in sorted(texts)
        )
        manifest = Manifest(SCHEMA, model, tuple(artifacts), golden, tuple(evals), extra)
        try:
            text = codec.to_json(manifest, indent=2) + "\n"
        except (TypeError, ValueError) as e:
            raise BundleError(f"{dest}: the manifest cannot be written: {e}.") from e
        (staging / MANIFEST).write_text(text, encoding="utf-8", newline="\n")
        # The reader's own checks: what could not be opened again is not put in place.
        Bundle._open_dir(staging, str(dest), verify=True)
    return Bundle.open(dest, verify=False)


class RawTensorWriter:
    """Writes an array row by row as raw little-endian, C-ordered bytes under ``folder/path``.

    Args:
        folder: where the files of a bundle-to-be are collected.
        path: relative to it, as it will stand in the manifest.
        name: the tensor's name in the model or artifact.
        dtype: one of the dtypes of ``types.BYTES_PER_ELEMENT``.
        shape: (n, ...), n rows of the others.

    Raises:
        BundleError: for another dtype, an empty shape, or a path that no manifest may hold.
    """

    def __init__(
        self, folder: Path, path: str, name: str, dtype: str, shape: tuple[int, ...]
    ) -> None:
        if problem := path_problem(path):
            raise BundleError(f"{path!r:.200} {problem}.")
        if dtype not in BYTES_PER_ELEMENT or not shape or 0 in shape:
            raise BundleError(f"{path}: cannot store {dtype} {shape} as a raw tensor.")
        self._target = folder / path
        self._made = (name, path, dtype, shape)
        self._target.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._target.open("wb")

    def __enter__(self) -> RawTensorWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, rows: NDArray[Any]) -> None:
        """Append one row, or some: any array whose elements are theirs."""
        import numpy as np

        dtype = np.dtype(self._made[2]).newbyteorder("<")
        self._file.write(np.ascontiguousarray(rows, dtype=dtype).data)

    def finish(self) -> RawTensor:
        """What the manifest says of it.

        Raises:
            BundleError: there are not as many elements as the shape says.
        """
        self._file.close()
        name, path, dtype, shape = self._made
        wanted, given = math.prod(shape) * BYTES_PER_ELEMENT[dtype], self._target.stat().st_size
        if given != wanted:
            raise BundleError(f"{path}: {given} bytes are not the {wanted} of {dtype} {shape}.")
        return RawTensor(name, path, dtype, shape, sha256_file(self._target))


def write_raw_tensor(folder: Path, path: str, name: str, array: NDArray[Any]) -> RawTensor:
    """Writes an array of shape (n, ...) as :class:`RawTensorWriter` does, which says the rest."""
    with RawTensorWriter(folder, path, name, array.dtype.name, array.shape) as writer:
        writer.write(array)
        return writer.finish()
