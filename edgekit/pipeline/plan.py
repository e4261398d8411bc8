"""What is to be done for a bundle: the steps that the workspace does not have yet, as jobs.

Nothing runs here. The folder of a step is named after everything that its result depends on, so a
step that was done before is found by its name and needs no job.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit import codec, registry
from edgekit.bundle import Bundle
from edgekit.config import ProjectConfig
from edgekit.errors import UsageError
from edgekit.isolate import Job
from edgekit.pipeline.step_results import (
    ARTIFACT,
    EvaluateResult,
    ExportResult,
    LoadResult,
    ReferenceResult,
    RepairResult,
    SetResult,
)
from edgekit.pipeline.workspace import Workspace, environment, load_result
from edgekit.quantize.recipes import RECIPES
from edgekit.quantize.variants import variants
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
    repair: Path | None
    export: Path
    evaluate: Path


@dataclass(frozen=True)
class Wanted:
    """One artifact that is wanted: a recipe for a runtime.

    ``float_ops`` are operators that stay float; ``replay`` says that the recipe's own steps and
    float nodes are applied as they are.
    """

    runtime: str
    recipe: Recipe
    float_ops: tuple[str, ...] = ()
    replay: bool = False


@dataclass(frozen=True)
class Plan:
    """The candidates, the folder of the float reference, and the jobs that are still to be run."""

    candidates: tuple[Candidate, ...]
    reference: Path
    jobs: tuple[Job, ...]


def recipes_for(project: ProjectConfig, loaded: LoadResult) -> tuple[str, ...]:
    """The names of the recipes to apply: those of the project, or what suits the model."""
    if project.quantize.recipes:
        return project.quantize.recipes
    return ("fp32", "dynamic_wi8_afp32" if loaded.is_transformer else "static_wi8_ai8")


def has_recipe(runtime: str, name: str) -> bool:
    """Whether a runtime can do a recipe."""
    return name in registry.runtimes()[runtime].recipes


def replayed(bundle: Path, runtimes: Collection[str]) -> Iterator[Wanted]:
    """The recipes of a bundle's artifacts, as they were made."""
    artifacts = Bundle.open(bundle).manifest.artifacts
    found = [a for a in artifacts if a.runtime in runtimes]
    if not found:
        raise UsageError(f"{bundle} has no artifact for {', '.join(runtimes)}.")
    for artifact in found:
        yield Wanted(artifact.runtime, artifact.recipe, replay=True)


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
        wanted = {
            "calibration": data.calib,
            "choose": data.eval,
            "report": data.report,
            "train": data.train,
        }
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

    def artifacts(
        self,
        loaded: LoadResult,
        program: Path,
        sets: Mapping[str, SetResult],
        wanted_ones: Iterable[Wanted],
    ) -> Plan:
        """The float reference, and for everything wanted its repair, export and evaluation."""
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
        candidates: list[Candidate] = []
        repairs: dict[str, Path] = {}
        for wanted in wanted_ones:
            recipe, runtime = wanted.recipe, wanted.runtime
            parts: list[Any] = [*base, recipe]
            inputs = {
                "program": str(program),
                "ranges": "",
                "calibration": "",
                "repaired": "",
                "same": "",
            }
            after = ""
            repair = None
            if recipe.scheme in ("static", "dynamic"):
                static = recipe.scheme == "static"
                repair, job = self._repair(wanted, base, common, program, sets, metric)
                after = f"repair {recipe.name}" + (f" {recipe.variant}" if recipe.variant else "")
                parts.append(repair.name)
                inputs = {
                    "program": str(repair / "program.pt2"),
                    "ranges": str(repair / "ranges.json") if static else "",
                    "calibration": sets["calibration"].path if static else "",
                    "repaired": str(repair),
                    # What the artifact depends on beside the repaired program itself.
                    "same": codec.to_json(
                        [
                            self._environment,
                            loaded.inputs,
                            runtime,
                            sets["calibration"].id if static else "",
                        ]
                    ),
                }
                # Runtimes with the same variant share its repair.
                if repairs.setdefault(after, repair) != repair:
                    after = f"{after} {runtime}"
                    repairs[after] = repair
                known = {job.name for job in jobs}
                if after not in known and load_result(RepairResult, repair) is None:
                    jobs.append(replace(job, name=after))
            export = step("export", *parts, runtime)
            name = "-".join(
                part
                for part in (self._project.model.name, runtime, recipe.name, recipe.variant)
                if part
            )
            candidate = Candidate(
                id=name,
                runtime=runtime,
                recipe=recipe,
                repair=repair,
                export=export,
                # The result names the artifact, so it depends on the name too.
                evaluate=step("evaluate", name, export.name, *judged_on),
            )
            candidates.append(candidate)
            jobs += self._export(candidate, {**common, **inputs}, after)
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

    def wanted(self, loaded: LoadResult) -> Iterator[Wanted]:
        """What is to be made: the recipes of a bundle, or those of the project in all variants."""
        settings = self._project.quantize
        if settings.replay is not None:
            yield from replayed(settings.replay, settings.runtimes)
            return
        for name in recipes_for(self._project, loaded):
            recipe = RECIPES[name]
            for runtime in settings.runtimes:
                if not has_recipe(runtime, name):
                    continue
                for variant in variants(runtime, recipe.scheme, loaded.rewrites, loaded.ops):
                    yield Wanted(
                        runtime,
                        replace(recipe, variant=variant.name, rewrites=variant.rewrites),
                        variant.float_ops,
                    )

    def _repair(
        self,
        wanted: Wanted,
        base: list[Any],
        common: Mapping[str, Any],
        program: Path,
        sets: Mapping[str, SetResult],
        metric: str,
    ) -> tuple[Path, Job]:
        """The folder of a repaired program, and the job that fills it."""
        recipe, calibration = wanted.recipe, sets.get("calibration")
        settings = {
            "recipe": codec.to_jsonable(recipe),
            "rungs": list(self._project.quantize.rungs),
            "max_drop": self._project.budget.max_drop,
            "metric": metric or None,
            "float_ops": list(wanted.float_ops),
            "replay": wanted.replay,
        }
        train = sets.get("train")
        calibrated_on = calibration.id if calibration else ""
        judged_on = [calibrated_on, sets["choose"].id, train.id if train else "", metric]
        # Whatever the budget and the allowed rungs are: rungs that were climbed are used again.
        foot = [
            recipe.scheme,
            recipe.activations,
            recipe.ranges,
            recipe.rewrites,
            recipe.float_nodes,
        ]
        saved = self._workspace.step("ladder", *base, *judged_on, *foot, wanted.float_ops)
        parts = [*base, calibrated_on, recipe.rewrites]
        calibrated = self._workspace.step("calibrate", *parts)
        step = self._workspace.step("repair", *base, *judged_on, settings)
        payload = {
            "program": str(program),
            "calibration": calibration.path if calibration else "",
            "choose": common["choose"],
            "train": train.path if train else "",
            "settings": settings,
            "calibrated": str(calibrated),
            "saved": str(saved),
            "step": str(step),
        }
        # Calibration and each rung may take as long as any other step.
        steps = 1 + len(self._project.quantize.rungs)
        return step, self._job("repair", "repair", payload, weight=10, steps=steps)

    def _export(self, candidate: Candidate, inputs: Mapping[str, Any], after: str) -> list[Job]:
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
            after=(after,),
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
        steps: int = 1,
    ) -> Job:
        settings = self._project.quantize
        return Job(
            name=name,
            entry=f"{_STEPS}:{function}",
            payload=payload,
            log=self._workspace.logs / f"{name.replace(' ', '-').replace('/', '_')}.log",
            timeout_s=steps * settings.timeout_s,
            memory_bytes=settings.memory_bytes,
            # As many jobs as cores run at once: one thread each, or they would fight.
            env={"OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "2"},
            after=after,
            weight=weight,
            worker=worker,
        )
