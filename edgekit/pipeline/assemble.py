"""Puts finished steps together as a bundle: artifacts, golden vectors, evaluations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from edgekit import codec, registry
from edgekit.bundle import Bundle, write_bundle, write_raw_tensor
from edgekit.config import ProjectConfig
from edgekit.data import open_samples
from edgekit.errors import BundleError
from edgekit.pipeline.step_results import (
    ARTIFACT,
    EvaluateResult,
    ExportResult,
    LoadResult,
    ReferenceResult,
    SetResult,
)
from edgekit.pipeline.workspace import load_result
from edgekit.types import (
    Artifact,
    CandidateFailure,
    Evaluation,
    Golden,
    ModelSpec,
    RawTensor,
    Recipe,
    RungResult,
)

#: All evaluation samples are golden vectors, as long as they fill no more than this.
MAX_GOLDEN_BYTES = 64 * 2**20
MIN_GOLDEN = 16


@dataclass(frozen=True)
class Made:
    """One artifact with the folders of its steps and their results."""

    id: str
    runtime: str
    recipe: Recipe
    ladder: tuple[RungResult, ...]
    folder: Path
    export: ExportResult
    evaluated_in: Path
    evaluation: EvaluateResult


def assemble(
    project: ProjectConfig,
    loaded: LoadResult,
    sets: Mapping[str, SetResult],
    reference: Path,
    made: Sequence[Made],
    failures: Sequence[CandidateFailure],
) -> tuple[Bundle, bool]:
    """Write the bundle, unless the one that is there would be the same; True if it was."""
    found = load_result(ReferenceResult, reference)
    assert found is not None
    model = ModelSpec(
        name=project.model.name,
        source=project.model.source,
        inputs=loaded.inputs,
        outputs=loaded.outputs,
        preprocess=project.preprocess,
        weights_sha256=loaded.weights_sha256,
    )
    calibration = sets["calibration"].id if "calibration" in sets else ""
    artifacts = [_artifact(one, loaded, calibration) for one in made]
    files = {
        artifact.path: one.folder / (ARTIFACT + registry.runtimes()[one.runtime].extension)
        for artifact, one in zip(artifacts, made, strict=True)
    }
    evals = _evaluations(sets, found, made)
    # Beside the steps: what is assembled may be too large for a /tmp in memory.
    with TemporaryDirectory(prefix="assemble-", dir=reference.parent) as name:
        folder = Path(name)
        golden = _golden(project, loaded, sets["choose"], reference, found, made, folder)
        files |= {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.raw")}
        current = _current(project.quantize.bundle)
        wanted = (model, tuple(artifacts), golden, evals, _without_logs(failures))
        if current is not None and _content(current) == codec.to_json(wanted):
            return current, True
        bundle = write_bundle(
            project.quantize.bundle,
            model=model,
            artifacts=artifacts,
            golden=golden,
            evals=evals,
            files=files,
            failures=failures,
            ladders={one.id: one.ladder for one in made if one.ladder},
            class_names=sets["choose"].class_names,
        )
    return bundle, False


def _current(path: Path) -> Bundle | None:
    """The bundle that is there already, if it is whole."""
    try:
        return Bundle.open(path) if path.exists() else None
    except BundleError:
        return None


def _content(bundle: Bundle) -> str:
    manifest = bundle.manifest
    parts = (manifest.model, manifest.artifacts, manifest.golden, manifest.evals)
    return codec.to_json((*parts, _without_logs(bundle.recipe_log.failures)))


def _without_logs(failures: Iterable[CandidateFailure]) -> tuple[CandidateFailure, ...]:
    """The same crash again is no new content, though its log holds other addresses."""
    return tuple(replace(failure, log_tail=()) for failure in failures)


def _artifact(made: Made, loaded: LoadResult, calibration: str) -> Artifact:
    extension = registry.runtimes()[made.runtime].extension
    return Artifact(
        id=made.id,
        runtime=made.runtime,
        precision=made.recipe.precision,
        path=f"artifacts/{made.id}{extension}",
        sha256=made.export.sha256,
        size_bytes=made.export.size_bytes,
        inputs=loaded.inputs,
        outputs=loaded.outputs,
        recipe=made.recipe,
        calibration_id=calibration if made.recipe.precision == "int8" else "",
        tool_versions=made.export.tool_versions,
        inspection=made.export.inspection,
    )


def _evaluations(
    sets: Mapping[str, SetResult], found: ReferenceResult, made: Iterable[Made]
) -> tuple[Evaluation, ...]:
    made = list(made)
    choose = Evaluation(
        role="choose",
        set_id=sets["choose"].id,
        n=sets["choose"].n,
        metric=found.metric,
        float_value=found.choose_value,
        results=tuple(one.evaluation.choose for one in made),
    )
    if "report" not in sets:
        return (choose,)
    report = Evaluation(
        role="report",
        set_id=sets["report"].id,
        n=sets["report"].n,
        metric=found.metric,
        float_value=found.report_value,
        results=tuple(one.evaluation.report for one in made if one.evaluation.report),
    )
    return choose, report


def _golden(
    project: ProjectConfig,
    loaded: LoadResult,
    choose: SetResult,
    reference: Path,
    found: ReferenceResult,
    made: Iterable[Made],
    folder: Path,
) -> Golden:
    """Golden vectors: the evaluation set, or of a large one as many samples as the budget needs."""
    made = list(made)
    # The float model's outputs and those of each artifact.
    per_sample = sum(spec.nbytes for spec in loaded.inputs)
    per_sample += (1 + len(made)) * sum(spec.nbytes for spec in loaded.outputs)
    needed = MIN_GOLDEN
    if found.metric in ("top1", "agreement") and project.budget.max_drop > 0:
        needed = max(needed, math.ceil(1 / project.budget.max_drop))
    n = min(choose.n, max(needed, MAX_GOLDEN_BYTES // per_sample))
    samples = open_samples(Path(choose.path))

    def write(path: str, name: str, array: np.ndarray[Any, Any]) -> RawTensor:
        return write_raw_tensor(folder, f"golden/{path}.raw", name, array[:n])

    def copy(path: str, step: Path, tensors: Iterable[RawTensor]) -> tuple[RawTensor, ...]:
        return tuple(
            write(f"{path}{i}", tensor.name, _read(step, tensor))
            for i, tensor in enumerate(tensors)
        )

    return Golden(
        n=n,
        set_id=choose.id,
        metric=found.metric,
        inputs=tuple(
            write(f"input{i}", spec.name, array)
            for i, (spec, array) in enumerate(zip(loaded.inputs, samples.inputs, strict=True))
        ),
        outputs=copy("float-output", reference, found.choose),
        artifact_outputs={
            one.id: copy(f"{one.id}-output", one.evaluated_in, one.evaluation.golden)
            for one in made
        },
        labels=None if samples.labels is None else write("labels", "labels", samples.labels),
    )


def _read(folder: Path, tensor: RawTensor) -> np.ndarray[Any, Any]:
    return np.memmap(folder / tensor.path, tensor.dtype, mode="r", shape=tensor.shape)
