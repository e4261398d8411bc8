"""``edgekit check``: what each runtime would make of a model, asked before anything is exported.

The model is loaded and prepared as for quantizing, and that step is kept for it. Each runtime is
then asked in a process of its own.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit import codec, registry
from edgekit.config import ProjectConfig
from edgekit.errors import EdgekitError
from edgekit.isolate import Job, Outcome, run_isolated, run_many
from edgekit.pipeline.plan import Planner
from edgekit.pipeline.step_results import LoadResult
from edgekit.pipeline.workspace import Workspace, load_result, unchanged
from edgekit.progress import Progress, Quiet
from edgekit.quantize.check import Operator, RuntimeCheck, Verdict

_CHECK = "edgekit.quantize.check"
#: A check that takes longer than this is of no use before an export.
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class CheckOutcome:
    """The operators of the prepared program in the order in which they run, and all verdicts."""

    model: str
    operators: tuple[Operator, ...]
    checks: tuple[RuntimeCheck, ...]
    notes: tuple[str, ...]
    seconds: float

    @property
    def converts(self) -> bool:
        """Whether every operator converts to every runtime that was asked."""
        return all(check.converts for check in self.checks)


def check(project: ProjectConfig, *, progress: Progress | None = None) -> CheckOutcome:
    """Ask the project's runtimes about every operator of its model.

    Raises:
        UsageError: the model cannot be loaded or exported.
        WorkerCrashed: loading it died; a runtime that cannot be asked has an ``error`` instead.
    """
    started = time.monotonic()
    progress = progress or Quiet()
    workspace = Workspace(project.root)
    planner = Planner(project, workspace)

    def wait() -> None:
        progress.log("Another edgekit works in this project; waiting for it to end.")

    with (
        workspace.opened(wait),
        tempfile.TemporaryDirectory(prefix="edgekit-check-") as folder,
    ):
        step, load = planner.load()
        loaded = load_result(LoadResult, step)
        if loaded is None or not unchanged(loaded.dependencies):
            with progress.stage("Load and export the model"):
                run_isolated(load)
            loaded = load_result(LoadResult, step)
        if loaded is None:
            raise EdgekitError(f"The step {step.name} left no result.")
        jobs = _jobs(project, step / "program.pt2", Path(folder))
        outcomes: dict[str, Outcome] = {}
        with progress.stage("Ask the runtimes", total=len(jobs)) as stage:

            def on_done(outcome: Outcome) -> None:
                outcomes[outcome.job.name] = outcome
                stage.advance(note=outcome.job.name)

            run_many(jobs, max_workers=os.cpu_count() or 1, on_done=on_done)
    described = outcomes.pop("describe")
    if described.error is not None:
        raise described.error
    return CheckOutcome(
        model=project.model.name,
        operators=codec.from_json(tuple[Operator, ...], described.value, where="operators"),
        checks=tuple(_check(name, outcomes[f"check {name}"]) for name in project.quantize.runtimes),
        notes=loaded.notes,
        seconds=time.monotonic() - started,
    )


def _jobs(project: ProjectConfig, program: Path, folder: Path) -> Sequence[Job]:
    def job(name: str, function: str, payload: dict[str, Any], weight: float) -> Job:
        return Job(
            name=name,
            entry=f"{_CHECK}:{function}",
            payload={"program": str(program), **payload},
            log=folder / f"{name.replace(' ', '-')}.log",
            timeout_s=min(TIMEOUT_S, project.quantize.timeout_s),
            memory_bytes=project.quantize.memory_bytes,
            env={"OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"},
            weight=weight,
        )

    jobs = [job("describe", "describe_worker", {}, 1)]
    jobs += [
        job(f"check {name}", "check_worker", {"runtime": name}, 2)
        for name in project.quantize.runtimes
    ]
    return jobs


def _check(runtime: str, outcome: Outcome) -> RuntimeCheck:
    if outcome.error is not None:
        label = registry.runtimes()[runtime].label
        return RuntimeCheck(
            runtime,
            error=outcome.error.message or f"{label} could not be asked.",
            remedy=outcome.error.remedy,
            seconds=outcome.seconds,
        )
    verdicts = codec.from_json(dict[str, Verdict], outcome.value, where=f"verdicts of {runtime}")
    return RuntimeCheck(runtime, verdicts, seconds=outcome.seconds)
