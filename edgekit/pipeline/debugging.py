"""Where the error of a bundle's INT8 artifacts comes from, layer by layer.

Works on what quantizing left in the workspace; nothing is quantized here. One process per artifact
reads its tensors in place; one per repaired program simulates what each layer adds by itself.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit import codec
from edgekit.bundle import Bundle
from edgekit.config import ProjectConfig
from edgekit.errors import BundleError, EdgekitError, UsageError
from edgekit.isolate import Job, Outcome, run_isolated, run_many
from edgekit.pipeline.plan import Candidate, Planner
from edgekit.pipeline.step_results import ExportResult, LoadResult, SetResult
from edgekit.pipeline.workspace import Workspace, load_result, unchanged
from edgekit.progress import Progress, Quiet
from edgekit.quantize.error_advice import Case, advise, blame
from edgekit.quantize.layer_errors import ArtifactErrors, InPlace, LayerError, Node
from edgekit.types import Artifact

SAMPLES = 8
_WORKERS = "edgekit.quantize.debug"


@dataclass(frozen=True)
class DebugFailure:
    """An artifact that could not be looked into, and why."""

    artifact: str
    runtime: str
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class DebugOutcome:
    """What debugging gave; artifacts in the order of the bundle."""

    bundle: Path
    model: str
    artifacts: tuple[ArtifactErrors, ...]
    failures: tuple[DebugFailure, ...]
    seconds: float


@dataclass(frozen=True)
class _Subject:
    """An artifact with the steps that it was made in."""

    artifact: Artifact
    repair: Path | None


def debug(
    project: ProjectConfig,
    *,
    bundle: Path | None = None,
    runtimes: Sequence[str] | None = None,
    samples: int = SAMPLES,
    progress: Progress | None = None,
) -> DebugOutcome:
    """Measure the error of every layer of every INT8 artifact.

    Args:
        project: what the bundle was made from.
        bundle: default: the project's.
        runtimes: default: all of the bundle.
        samples: so many golden samples of the bundle are looked at, spread evenly.
        progress: receives stages and log lines.

    Raises:
        BundleError: there is no bundle, or the workspace does not hold what it was made from.
        UsageError: the bundle has no INT8 artifact for the runtimes.
        WorkerCrashed: the samples cannot be read; single artifacts become ``failures`` instead.
    """
    if samples < 1:
        raise UsageError(f"--samples: must be 1 or more, not {samples}.")
    return _Debugging(project, samples, progress or Quiet()).run(bundle, runtimes)


class _Debugging:
    def __init__(self, project: ProjectConfig, samples: int, progress: Progress) -> None:
        self._project, self._samples, self._progress = project, samples, progress
        self._workspace = Workspace(project.root)
        self._planner = Planner(project, self._workspace)

    def run(self, path: Path | None, runtimes: Sequence[str] | None) -> DebugOutcome:
        started = time.monotonic()
        path = path or self._project.quantize.bundle
        with Bundle.open(path) as bundle, self._workspace.opened(self._wait):
            artifacts = _int8(bundle, runtimes)
            program, candidates = self._candidates(path)
            subjects = [_subject(artifact, candidates, path) for artifact in artifacts]
            found, errors = self._measure(bundle, program, subjects)
            own = {s.artifact.id: _nodes(found.get(_own_name(s))) for s in subjects}
            made = [
                _merge(s.artifact, self._count(bundle), own[s.artifact.id], found[_job_name(s)])
                for s in subjects
                if _job_name(s) in found
            ]
            failures = [
                DebugFailure(s.artifact.id, s.artifact.runtime, error.message, error.remedy)
                for s in subjects
                if (error := errors.get(_job_name(s)) or errors.get(_own_name(s))) is not None
            ]
            return DebugOutcome(
                bundle=path,
                model=bundle.manifest.model.name,
                artifacts=tuple(made),
                failures=tuple(failures),
                seconds=time.monotonic() - started,
            )

    def _wait(self) -> None:
        self._progress.log("Another edgekit works in this project; waiting for it to end.")

    def _count(self, bundle: Bundle) -> int:
        return min(self._samples, bundle.manifest.golden.n)

    def _candidates(self, path: Path) -> tuple[Path, dict[str, Candidate]]:
        """The prepared program, and what quantizing made of it, by artifact id."""
        step, _ = self._planner.load()
        loaded = load_result(LoadResult, step)
        if loaded is None or not unchanged(loaded.dependencies):
            raise _not_made_here(path)
        with self._progress.stage("Find what the bundle was made from"):
            read = run_isolated(self._planner.read_sets(loaded))
        sets = {
            role: codec.from_json(SetResult, value, where="sample set")
            for role, value in read.items()
        }
        program = step / "program.pt2"
        plan = self._planner.artifacts(loaded, program, sets, self._planner.wanted(loaded))
        return program, {candidate.id: candidate for candidate in plan.candidates}

    def _measure(
        self, bundle: Bundle, program: Path, subjects: Sequence[_Subject]
    ) -> tuple[dict[str, Any], dict[str, EdgekitError]]:
        """What the workers gave and how they failed, by job."""
        found: dict[str, Any] = {}
        errors: dict[str, EdgekitError] = {}
        with tempfile.TemporaryDirectory(prefix="debug-", dir=self._workspace.path) as folder:
            jobs = self._jobs(bundle, program, subjects, Path(folder))
            with self._progress.stage("Run layer by layer", total=len(jobs)) as stage:

                def on_done(outcome: Outcome) -> None:
                    stage.advance(note=outcome.job.name)
                    if outcome.error is None:
                        found[outcome.job.name] = outcome.value
                    else:
                        errors[outcome.job.name] = outcome.error
                        self._progress.log(f"{outcome.job.name} failed: {outcome.error}")

                run_many(jobs, max_workers=os.cpu_count() or 1, on_done=on_done)
        return found, errors

    def _jobs(
        self, bundle: Bundle, program: Path, subjects: Sequence[_Subject], folder: Path
    ) -> list[Job]:
        golden = bundle.manifest.golden
        count = self._count(bundle)
        jobs: dict[str, Job] = {}
        for subject in subjects:
            artifact = subject.artifact
            payload = {
                "id": artifact.id,
                "runtime": artifact.runtime,
                "artifact": str(bundle.path / artifact.path),
                "program": str(program),
                "repaired": str(subject.repair or ""),
                "recipe": codec.to_jsonable(artifact.recipe),
                "inputs": codec.to_jsonable(artifact.inputs),
                "folder": str(bundle.path),
                "golden": codec.to_jsonable(golden.inputs),
                "expected": codec.to_jsonable(golden.artifact_outputs.get(artifact.id, ())),
                "samples": [i * golden.n // count for i in range(count)],
            }
            for name, function, weight in (
                (_own_name(subject), "own_worker", 2.0),
                (_job_name(subject), "in_place_worker", 1.0),
            ):
                if name not in jobs:
                    work = folder / str(len(jobs))
                    work.mkdir()
                    jobs[name] = self._job(name, function, {**payload, "work": str(work)}, weight)
        return list(jobs.values())

    def _job(self, name: str, function: str, payload: Mapping[str, Any], weight: float) -> Job:
        settings = self._project.quantize
        return Job(
            name=name,
            entry=f"{_WORKERS}:{function}",
            payload=payload,
            log=self._workspace.logs / f"{name.replace(' ', '-').replace('/', '_')}.log",
            timeout_s=settings.timeout_s,
            memory_bytes=settings.memory_bytes,
            env={"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"},
            weight=weight,
        )


def _int8(bundle: Bundle, runtimes: Sequence[str] | None) -> list[Artifact]:
    made = [a for a in bundle.manifest.artifacts if a.precision == "int8"]
    found = [a for a in made if runtimes is None or a.runtime in runtimes]
    if not found:
        asked = f" for {', '.join(runtimes)}" if runtimes else ""
        known = ", ".join(sorted({a.runtime for a in made}))
        raise UsageError(
            f"The bundle has no INT8 artifact{asked}.",
            remedy=f"It has some for: {known}." if known else "Make some: edgekit quantize.",
        )
    return found


def _subject(artifact: Artifact, candidates: Mapping[str, Candidate], path: Path) -> _Subject:
    candidate = candidates.get(artifact.id)
    export = load_result(ExportResult, candidate.export) if candidate is not None else None
    if candidate is None or export is None or export.sha256 != artifact.sha256:
        raise _not_made_here(path)
    return _Subject(artifact, candidate.repair)


def _not_made_here(path: Path) -> BundleError:
    return BundleError(
        f"{path} was made from other settings, another version or on another machine: this "
        "project's workspace does not have its programs and ranges.",
        remedy="Run `edgekit quantize` first; what did not change is not made again.",
    )


def _job_name(subject: _Subject) -> str:
    return f"debug {subject.artifact.id}"


def _own_name(subject: _Subject) -> str:
    """One simulation serves all artifacts of one repaired program and recipe."""
    recipe = subject.artifact.recipe
    parts = (recipe.name, recipe.variant, subject.repair.name if subject.repair else "")
    return "simulate " + " ".join(part for part in parts if part)


def _nodes(found: Any) -> tuple[Node, ...]:
    return () if found is None else codec.from_json(tuple[Node, ...], found, where="simulation")


def _merge(artifact: Artifact, n: int, nodes: Sequence[Node], found: Any) -> ArtifactErrors:
    """One artifact's rows: what was measured in place beside the simulation, with advice."""
    place = codec.from_json(InPlace, found, where=artifact.id)
    by_name = {node.name: node for node in nodes}
    layers = []
    for node in nodes or [Node(name, "") for name in place.measured]:
        measured = place.measured.get(node.name)
        if measured is None:
            continue
        share = None
        if node.facts is not None:
            # Both SQNRs are of the same signal.
            share = 10 ** ((measured.sqnr_db - node.facts.own_sqnr_db) / 10)
        case = Case(node, measured, artifact.recipe, artifact.runtime, share, blame(node, by_name))
        layers.append(LayerError(node, measured.sqnr_db, share, advise(case)))
    return ArtifactErrors(
        artifact=artifact.id,
        runtime=artifact.runtime,
        recipe=artifact.recipe,
        n=n,
        method=place.method,
        output_sqnr_db=place.output_sqnr_db,
        layers=tuple(layers),
        notes=place.notes,
    )
