"""From a project to a bundle: load, calibrate, repair, export, inspect, evaluate, assemble.

The process that the user talks to only plans and assembles; every step runs in a process of its own
and is found again in the workspace when nothing that it depends on has changed.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgekit import codec, registry
from edgekit.bundle import Bundle
from edgekit.config import ProjectConfig
from edgekit.errors import DataError, EdgekitError, ExportFailed, UsageError
from edgekit.isolate import Job, Outcome, run_isolated, run_many
from edgekit.pipeline.assemble import Made, assemble
from edgekit.pipeline.keeping import worth_keeping
from edgekit.pipeline.plan import Candidate, Planner, Wanted, has_recipe
from edgekit.pipeline.step_results import (
    EvaluateResult,
    ExportResult,
    LoadResult,
    RepairResult,
    SetResult,
)
from edgekit.pipeline.workspace import Workspace, load_result, unchanged
from edgekit.progress import Progress, Quiet
from edgekit.quantize.recipes import RECIPES
from edgekit.types import CandidateFailure, Inspection, RungResult

T = TypeVar("T")

#: First words of the names of jobs that some candidates need and others do without.
_CANDIDATE_JOBS = ("export", "evaluate", "repair")


@dataclass(frozen=True)
class QuantizeOutcome:
    """What quantizing gave. ``reused`` says that the bundle was up to date already.

    ``within_budget`` are the ids of INT8 artifacts that keep the budget on this host (a preview).
    """

    bundle: Bundle
    failures: tuple[CandidateFailure, ...]
    within_budget: tuple[str, ...]
    reused: bool
    seconds: float


def quantize(project: ProjectConfig, *, progress: Progress | None = None) -> QuantizeOutcome:
    """Make the project's bundle; what did not change since the last time is not made again.

    Raises:
        UsageError: configuration, model or data cannot be used.
        WorkerCrashed: loading or calibrating died; single exporters become ``failures`` instead.
        ExportFailed: no artifact could be made at all.
    """
    return _Quantizing(project, progress or Quiet()).run()


class _Quantizing:
    def __init__(self, project: ProjectConfig, progress: Progress) -> None:
        self._project, self._progress = project, progress
        self._workspace = Workspace(project.root)
        self._planner = Planner(project, self._workspace)

    def run(self) -> QuantizeOutcome:
        started = time.monotonic()
        _check_settings(self._project)
        for runtime, name in _left_out(self._project):
            self._progress.log(f"{runtime} has no {name}: left out.")
        with self._workspace.opened(self._wait):
            loaded, program = self._load()
            wanted = tuple(self._planner.wanted(loaded))
            _check_calibration(self._project, wanted)
            sets = self._read_sets(loaded)
            _check_eval_size(self._project, sets["choose"])
            plan = self._planner.artifacts(loaded, program, sets, wanted)
            made, failed = _collect(plan.candidates, self._run_jobs(plan.jobs))
            made = worth_keeping(made, self._project.budget.max_drop, self._progress.log)
            if not made:
                raise ExportFailed(
                    "No artifact could be made: " + "; ".join(f.message for f in failed),
                    remedy="`edgekit doctor` says which runtimes work on this machine.",
                )
            bundle, reused = assemble(self._project, loaded, sets, plan.reference, made, failed)
            return QuantizeOutcome(
                bundle=bundle,
                failures=tuple(failed),
                within_budget=_within_budget(bundle, self._project.budget.max_drop),
                reused=reused,
                seconds=time.monotonic() - started,
            )

    def _wait(self) -> None:
        self._progress.log("Another edgekit works in this project; waiting for it to end.")

    def _load(self) -> tuple[LoadResult, Path]:
        step, job = self._planner.load()
        result = load_result(LoadResult, step)
        if result is None or not unchanged(result.dependencies):
            with self._progress.stage("Load and export the model"):
                run_isolated(job)
            result = _finished(LoadResult, step)
        else:
            self._progress.log("The model is unchanged.")
        for note in result.notes:
            self._progress.log(note)
        return result, step / "program.pt2"

    def _read_sets(self, loaded: LoadResult) -> dict[str, SetResult]:
        with self._progress.stage("Read calibration and evaluation samples") as stage:
            found = run_isolated(
                self._planner.read_sets(loaded),
                on_told=lambda job, text: stage.advance(0, note=text),
            )
        return {
            role: codec.from_json(SetResult, value, where="sample set")
            for role, value in found.items()
        }

    def _run_jobs(self, jobs: Sequence[Job]) -> dict[str, EdgekitError]:
        """Run what has to be run; returns the failed jobs of single candidates by name."""
        if not jobs:
            self._progress.log("All artifacts are up to date.")
            return {}
        failures: dict[str, EdgekitError] = {}
        with self._progress.stage("Make and check the artifacts", total=len(jobs)) as stage:

            def on_done(outcome: Outcome) -> None:
                stage.advance(note=outcome.job.name)
                if outcome.error is None:
                    return
                if outcome.job.name.split()[0] not in _CANDIDATE_JOBS:
                    # The float reference: nothing can be judged without it.
                    raise outcome.error
                failures[outcome.job.name] = outcome.error
                self._progress.log(f"{outcome.job.name} failed: {outcome.error}")

            def on_told(job: Job, text: str) -> None:
                stage.advance(0, note=f"{job.name}: {text}")

            workers = os.cpu_count() or 1
            run_many(jobs, max_workers=workers, on_done=on_done, on_told=on_told)
        return failures


def _check_settings(project: ProjectConfig) -> None:
    for name in project.quantize.recipes:
        if name not in RECIPES:
            raise UsageError(
                f"There is no recipe {name!r}.", remedy=f"Recipes: {', '.join(RECIPES)}."
            )
        if not any(has_recipe(runtime, name) for runtime in project.quantize.runtimes):
            able = [runtime for runtime in registry.runtimes() if has_recipe(runtime, name)]
            raise UsageError(
                f"{', '.join(project.quantize.runtimes)} cannot do {name}.",
                remedy=f"Runtimes that can: {', '.join(able)}.",
            )
    if project.data.eval is None:
        raise DataError(
            "There is no evaluation set, so nothing could be judged.",
            remedy="Give one: --eval PATH, or eval under [data] in edgekit.toml.",
        )


def _left_out(project: ProjectConfig) -> Iterator[tuple[str, str]]:
    """Runtimes with the recipes that were asked for and that they do not have."""
    for name in project.quantize.recipes:
        for runtime in project.quantize.runtimes:
            if not has_recipe(runtime, name):
                yield runtime, name


def _check_calibration(project: ProjectConfig, wanted: Sequence[Wanted]) -> None:
    if project.data.calib is not None:
        return
    if any(one.recipe.scheme == "static" for one in wanted):
        raise DataError(
            "Static INT8 needs real samples to calibrate on.",
            remedy="Give some: --calib PATH, or make only float artifacts: --recipes fp32.",
        )


def _check_eval_size(project: ProjectConfig, choose: SetResult) -> None:
    """A drop of max_drop must be more than one sample, or it cannot be seen."""
    max_drop = project.budget.max_drop
    needed = math.ceil(1 / max_drop - 1e-9) if max_drop > 0 else 1
    if choose.n < needed:
        raise DataError(
            f"The evaluation set has {choose.n} samples; a drop of {max_drop:g} can only be seen "
            f"with at least {needed}.",
            remedy=f"Give more samples, or a budget of {1 / choose.n:.3f} or more.",
        )


def _finished(cls: type[T], step: Path) -> T:
    result = load_result(cls, step)
    if result is None:
        raise EdgekitError(f"The step {step.name} left no result.")
    return result


def _collect(
    candidates: Sequence[Candidate], errors: Mapping[str, EdgekitError]
) -> tuple[list[Made], list[CandidateFailure]]:
    made, failed = [], []
    for candidate in candidates:
        error = errors.get(f"export {candidate.id}")
        if error is not None:
            failed.append(_failure(candidate, "export", error))
            continue
        export = _finished(ExportResult, candidate.export)
        broken = _broken_promise(candidate, export)
        if broken is not None:
            failed.append(broken)
            continue
        error = errors.get(f"evaluate {candidate.id}")
        if error is not None:
            failed.append(_failure(candidate, "evaluate", error))
            continue
        made.append(
            Made(
                id=candidate.id,
                runtime=candidate.runtime,
                recipe=export.recipe,
                ladder=_ladder(candidate),
                folder=candidate.export,
                export=export,
                evaluated_in=candidate.evaluate,
                evaluation=_finished(EvaluateResult, candidate.evaluate),
            )
        )
    return made, failed


def _ladder(candidate: Candidate) -> tuple[RungResult, ...]:
    return () if candidate.repair is None else _finished(RepairResult, candidate.repair).ladder


def _broken_promise(candidate: Candidate, export: ExportResult) -> CandidateFailure | None:
    promised = export.promised_share
    if promised is None:
        return None
    message = _why_broken(candidate.recipe.name, export.inspection, promised)
    if not message:
        return None
    return CandidateFailure(
        candidate=candidate.id,
        runtime=candidate.runtime,
        stage="inspect",
        kind="label",
        message=message,
        remedy="`edgekit inspect` on the file lists the operators that stayed float; "
        "--recipes fp32 makes float artifacts only.",
    )


def _why_broken(recipe: str, found: Inspection, promised: float) -> str:
    """What an artifact lacks of the share that its recipe promises; empty where nothing."""
    uncounted = ", ".join(found.uncounted_ops)
    if found.int8_mac_share is not None:
        share, how = _kept_share(recipe, found)
        if share < promised:
            return (
                f"It is called {recipe}, but only {share:.0%} of its multiply-accumulates {how} "
                f"({promised:.0%} promised)."
            )
    elif not uncounted:
        return (
            f"It is called {recipe}, but there is no convolution or matrix product in it, so INT8 "
            "gives nothing here."
        )
    if uncounted:
        return (
            f"It is called {recipe}, but what it multiplies cannot all be seen to be in int8: "
            f"{uncounted}."
        )
    return ""


def _kept_share(recipe: str, found: Inspection) -> tuple[float, str]:
    """The share of multiply-accumulates that a recipe is about, and what is said of them."""
    scheme, activations = RECIPES[recipe].scheme, RECIPES[recipe].activations
    if scheme == "dynamic":
        return found.int8_mac_share or 0.0, "are in int8"
    if scheme == "weight_only" or activations == "int16":
        return found.int8_weight_mac_share or 0.0, "have int8 weights"
    # What is quantized at run time only is not what a static recipe promises.
    return (found.int8_mac_share or 0.0) - (found.dynamic_mac_share or 0.0), "are in int8"


def _failure(candidate: Candidate, stage: Any, error: EdgekitError) -> CandidateFailure:
    return CandidateFailure(
        candidate=candidate.id,
        runtime=candidate.runtime,
        stage=stage,
        kind=getattr(error, "kind", type(error).__name__),
        message=error.message,
        remedy=error.remedy,
        log_tail=tuple(getattr(error, "log_tail", ())),
    )


def _within_budget(bundle: Bundle, max_drop: float) -> tuple[str, ...]:
    from edgekit.quality import within

    int8 = {a.id for a in bundle.manifest.artifacts if a.precision == "int8"}
    return tuple(
        result.artifact_id
        for evaluation in bundle.manifest.evals
        if evaluation.role == "choose"
        for result in evaluation.results
        if result.artifact_id in int8 and within(result.drop, max_drop)
    )
