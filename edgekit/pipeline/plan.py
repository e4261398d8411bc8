"""What is to be done for a bundle: the steps that the workspace does not have yet, as jobs.

Nothing runs here. The folder of a step is named after everything that its result depends on, so a
step that was done before is found by its name and needs no job.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit import codec, registry
from edgekit.config import ProjectConfig
from edgekit.isolate import Job
from edgekit.pipeline.steps import (
    ARTIFACT,
    EvaluateResult,
    ExportResult,
    LoadResult,
    ReferenceResult,
    SetResult,
)
from edgekit.pipeline.workspace import Workspace, environment, load_result
from edgekit.quantize.recipes import RECIPES
from edgekit.types import Recipe

_STEPS = "edgekit.pipeline.steps"
#: Rough seconds by runtime, only to start the long jobs first.
_WEIGHTS = {"executorch": 4.0, "tflite": 2.0, "onnx": 1.5, "torchscript": 1.0}


@dataclass(frozen=True)
class Candidate:
    """One artifact to be made, and where its steps leave their results."""

    id: str
    runtime: str
    recipe: Recipe
    export: Path
    evaluate: Path


@dataclass(frozen=True)
class Plan:
    """The candidates, the folder of the float reference, and the jobs that are still to be run."""

    candidates: tuple[Candidate, ...]
    reference: Path
    jobs: tuple[Job, ...]


class Planner:
    """Knows where each step of a project leaves its result and what it has to be told."""

    def __init__(self, project: ProjectConfig, workspace: Workspace) -> None:
        self._project, self._workspace = project, workspace
        self._environment = environment()
        model = project.model
        self._source = {
            "source": model.source,
            "root": str(project.root),
            "name": model.name,
            "weights": str(model.weights) if model.weights else "",
            "unsafe_weights": model.unsafe_weights,
            "inputs": [list(shape) for shape in model.inputs],
            "example": model.example,
        }

    def load(self) -> tuple[Path, Job]:
        """The folder of the loaded, exported and prepared model, and the job that fills it."""
        step = self._workspace.step("load", self._environment, self._source)
        return step, self._alone("load", {"source": self._source, "step": str(step)})

    def read_sets(self, loaded: LoadResult) -> Job:
        """The job that reads the sample sets; it returns their SetResults by role."""
        data = self._project.data
        wanted = {"calibration": data.calib, "choose": data.eval, "report": data.report}
        return self._alone(
            "read_sets",
            {
                "inputs": codec.to_jsonable(loaded.inputs),
                "preprocess": codec.to_jsonable(self._project.preprocess),
                "sets": {role: spec for role, spec in wanted.items() if spec},
                "root": str(self._project.root),
                "cache": str(self._workspace.samples),
            },
        )

    def artifacts(self, loaded: LoadResult, program: Path, sets: Mapping[str, SetResult]) -> Plan:
        """The float reference, and for every recipe its repair, exports and evaluations."""
        step = self._workspace.step
        metric = "" if self._project.data.metric == "auto" else self._project.data.metric
        report = sets.get("report")
        judged_on = [[sets["choose"].id, report.id if report else ""], metric]
        base = [self._environment, loaded.program_digest, loaded.inputs, loaded.outputs]
        common = {
            "choose": sets["choose"].path,
            "report": report.path if report else "",
            "inputs": codec.to_jsonable(loaded.inputs),
            "outputs": codec.to_jsonable(loaded.outputs),
        }
        reference = step("reference", *base, *judged_on)
        jobs = []
        if load_result(ReferenceResult, reference) is None:
            payload = {
                **common,
                "source": self._source,
                "program": str(program),
                "weights_sha256": loaded.weights_sha256,
                "metric": metric,
                "step": str(reference),
            }
            jobs.append(self._job("reference", "reference", payload, weight=6))
        candidates = []
        for recipe in (RECIPES[name] for name in self._project.quantize.recipes):
            parts: list[Any] = [*base, recipe]
            inputs = {"program": str(program), "ranges": "", "calibration": ""}
            if recipe.precision == "int8":
                parts.append(sets["calibration"].id)
                repair = step("repair", *parts)
                jobs += self._repair(repair, recipe, program, sets["calibration"])
                inputs = {
                    "program": str(repair / "program.pt2"),
                    "ranges": str(repair / "ranges.json"),
                    "calibration": sets["calibration"].path,
                }
            for runtime in self._project.quantize.runtimes:
                export = step("export", *parts, runtime)
                name = f"{self._project.model.name}-{runtime}-{recipe.name}"
                candidate = Candidate(
                    id=name,
                    runtime=runtime,
                    recipe=recipe,
                    export=export,
                    # The result names the artifact, so it depends on the name too.
                    evaluate=step("evaluate", name, export.name, *judged_on),
                )
                candidates.append(candidate)
                jobs += self._export(candidate, {**common, **inputs})
                jobs += self._evaluate(candidate, {**common, "reference": str(reference)})
        planned = {job.name for job in jobs}
        return Plan(
            candidates=tuple(candidates),
            reference=reference,
            # What is in the workspace already needs no waiting for.
            jobs=tuple(
                replace(job, after=tuple(name for name in job.after if name in planned))
                for job in jobs
            ),
        )

    def _repair(
        self, step: Path, recipe: Recipe, program: Path, calibration: SetResult
    ) -> list[Job]:
        if load_result(dict[str, str], step) is not None:
            return []
        payload = {
            "program": str(program),
            "calibration": calibration.path,
            "recipe": codec.to_jsonable(recipe),
            "step": str(step),
        }
        return [self._job(f"repair {recipe.name}", "repair", payload, weight=10)]

    def _export(self, candidate: Candidate, inputs: Mapping[str, Any]) -> list[Job]:
        if load_result(ExportResult, candidate.export) is not None:
            return []
        recipe, runtime = candidate.recipe, candidate.runtime
        payload = {
            **inputs,
            "runtime": runtime,
            "recipe": codec.to_jsonable(recipe),
            "extension": registry.runtimes()[runtime].extension,
            "step": str(candidate.export),
        }
        job = self._job(
            f"export {candidate.id}",
            "export",
            payload,
            after=(f"repair {recipe.name}",),
            weight=_WEIGHTS.get(runtime, 2.0),
            # A runtime's exporter is loaded once for all recipes: that takes half of its time.
            worker=f"export {runtime}",
        )
        return [job]

    def _evaluate(self, candidate: Candidate, inputs: Mapping[str, Any]) -> list[Job]:
        if load_result(EvaluateResult, candidate.evaluate) is not None:
            return []
        extension = registry.runtimes()[candidate.runtime].extension
        payload = {
            **inputs,
            "id": candidate.id,
            "artifact": str(candidate.export / (ARTIFACT + extension)),
            "runtime": candidate.runtime,
            "timeout_s": self._project.quantize.timeout_s,
            "step": str(candidate.evaluate),
        }
        job = self._job(
            f"evaluate {candidate.id}",
            "evaluate",
            payload,
            after=(f"export {candidate.id}", "reference"),
            weight=0.5,
        )
        return [job]

    def _alone(self, function: str, payload: Mapping[str, Any]) -> Job:
        """A job that nothing runs beside, so that it may use all cores."""
        return self._job(function, function, payload, threads=os.cpu_count() or 1)

    def _job(
        self,
        name: str,
        function: str,
        payload: Mapping[str, Any],
        *,
        after: tuple[str, ...] = (),
        weight: float = 1.0,
        worker: str = "",
        threads: int = 1,
    ) -> Job:
        settings = self._project.quantize
        return Job(
            name=name,
            entry=f"{_STEPS}:{function}",
            payload=payload,
            log=self._workspace.logs / f"{name.replace(' ', '-').replace('/', '_')}.log",
            timeout_s=settings.timeout_s,
            memory_bytes=settings.memory_bytes,
            # As many jobs as cores run at once: one thread each, or they would fight.
            env={"OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "2"},
            after=after,
            weight=weight,
            worker=worker,
        )
