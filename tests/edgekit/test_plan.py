"""The plan of a bundle's steps: what waits for what, and what need not be done again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.config import ProjectConfig
from edgekit.isolate import Job
from edgekit.pipeline.plan import Plan, Planner
from edgekit.pipeline.step_results import LoadResult, RepairResult, SetResult
from edgekit.pipeline.workspace import Workspace, making
from edgekit.quantize.recipes import RECIPES
from edgekit.types import TensorSpec
from tests.fixtures.tiny_project import make_project

LOADED = LoadResult(
    inputs=(TensorSpec("input", (1, 3, 8, 8), "float32"),),
    outputs=(TensorSpec("output", (1, 5), "float32"),),
    weights_sha256="0" * 64,
    program_digest="1" * 64,
    passes=(),
    dependencies=(),
    notes=(),
    ops=("aten.conv2d.default",),
    rewrites=(),
    is_transformer=False,
)
SETS = {
    role: SetResult(path=f"/samples/{role}", id=role, n=20, labelled=False, class_names=())
    for role in ("calibration", "choose")
}


@pytest.fixture
def project(tmp_path: Path) -> ProjectConfig:
    folder = make_project(tmp_path, ["onnx", "torchscript"])
    return ProjectConfig.from_args(config=folder / "edgekit.toml")


def plan(
    project: ProjectConfig, loaded: LoadResult = LOADED, choose: SetResult = SETS["choose"]
) -> Plan:
    planner = Planner(project, Workspace(project.root))
    sets = {**SETS, "choose": choose}
    return planner.artifacts(loaded, Path("/program.pt2"), sets, planner.wanted(loaded))


def by_name(found: Plan) -> dict[str, Job]:
    return {job.name: job for job in found.jobs}


def test_int8_waits_for_repair_and_evaluations_for_the_reference(project: ProjectConfig) -> None:
    jobs = by_name(plan(project))
    assert len(jobs) == 2 + 4 + 4
    assert jobs["export tiny-onnx-fp32"].after == ()
    assert jobs["export tiny-onnx-static_wi8_ai8"].after == ("repair static_wi8_ai8",)
    assert jobs["evaluate tiny-onnx-fp32"].after == ("export tiny-onnx-fp32", "reference")


def test_what_all_wait_for_comes_first(project: ProjectConfig) -> None:
    jobs = sorted(plan(project).jobs, key=lambda job: -job.weight)
    assert [job.name for job in jobs[:2]] == ["repair static_wi8_ai8", "reference"]


def test_an_exporter_may_stay_for_its_next_recipe_but_nothing_else_does(
    project: ProjectConfig,
) -> None:
    workers = {job.name: job.worker for job in plan(project).jobs}
    assert workers["export tiny-onnx-fp32"] == workers["export tiny-onnx-static_wi8_ai8"] != ""
    assert workers["export tiny-onnx-fp32"] != workers["export tiny-torchscript-fp32"]
    assert {worker for name, worker in workers.items() if not name.startswith("export")} == {""}


def test_a_finished_step_needs_no_job_and_no_waiting(project: ProjectConfig) -> None:
    first = by_name(plan(project))
    repaired = [RepairResult(RECIPES["static_wi8_ai8"], (), "0" * 64)]
    with making(Path(first["repair static_wi8_ai8"].payload["step"]), repaired):
        pass
    jobs = by_name(plan(project))
    assert set(first) - set(jobs) == {"repair static_wi8_ai8"}
    assert jobs["export tiny-onnx-static_wi8_ai8"].after == ()


def test_other_weights_change_every_step(project: ProjectConfig) -> None:
    first, second = plan(project), plan(project, replace(LOADED, program_digest="2" * 64))
    assert not steps(first) & steps(second)


def test_other_evaluation_samples_choose_other_rungs_on_the_same_ranges(
    project: ProjectConfig,
) -> None:
    other = replace(SETS["choose"], id="other")
    first, second = plan(project), plan(project, choose=other)
    exports = [{c.id: c.export for c in found.candidates} for found in (first, second)]
    same = {name for name in exports[0] if exports[0][name] == exports[1][name]}
    assert same == {"tiny-onnx-fp32", "tiny-torchscript-fp32"}
    assert not {c.evaluate for c in first.candidates} & {c.evaluate for c in second.candidates}
    assert first.reference != second.reference
    repairs = [by_name(found)["repair static_wi8_ai8"].payload for found in (first, second)]
    assert repairs[0]["calibrated"] == repairs[1]["calibrated"]
    assert repairs[0]["saved"] != repairs[1]["saved"]


def test_another_budget_climbs_the_same_ladder(project: ProjectConfig) -> None:
    looser = replace(project, budget=replace(project.budget, max_drop=0.5))
    repairs = [by_name(plan(p))["repair static_wi8_ai8"].payload for p in (project, looser)]
    assert repairs[0]["saved"] == repairs[1]["saved"]
    assert repairs[0]["step"] != repairs[1]["step"]


def test_variants_are_repaired_once_and_exported_by_runtime(project: ProjectConfig) -> None:
    hardswish = replace(LOADED, ops=("aten.hardswish.default",), rewrites=("fold_hardswish",))
    found = plan(project, hardswish)
    variants = [c for c in found.candidates if c.recipe.variant]
    assert {c.runtime for c in variants} == {"onnx"}, "never a fold for TorchScript"
    for candidate in variants:
        assert candidate.id.endswith(candidate.recipe.variant)
        after = by_name(found)[f"export {candidate.id}"].after
        assert after == (f"repair static_wi8_ai8 {candidate.recipe.variant}",)


def test_dynamic_int8_needs_no_calibration_samples(project: ProjectConfig) -> None:
    planner = Planner(project, Workspace(project.root))
    loaded, sets = replace(LOADED, is_transformer=True), {"choose": SETS["choose"]}
    found = planner.artifacts(loaded, Path("/program.pt2"), sets, planner.wanted(loaded))
    assert {c.recipe.name for c in found.candidates} == {"fp32", "dynamic_wi8_afp32"}


def test_a_repair_has_the_time_of_all_its_steps(project: ProjectConfig) -> None:
    jobs = by_name(plan(project))
    steps = 1 + len(project.quantize.rungs)
    assert jobs["repair static_wi8_ai8"].timeout_s == steps * project.quantize.timeout_s
    assert jobs["export tiny-onnx-fp32"].timeout_s == project.quantize.timeout_s


def test_a_transformer_gets_dynamic_int8_by_default(project: ProjectConfig) -> None:
    open_recipes = replace(project, quantize=replace(project.quantize, recipes=()))
    for is_transformer, expected in ((True, "dynamic_wi8_afp32"), (False, "static_wi8_ai8")):
        found = plan(open_recipes, replace(LOADED, is_transformer=is_transformer))
        assert {c.recipe.name for c in found.candidates} == {"fp32", expected}


def steps(found: Plan) -> set[str]:
    return {job.payload["step"] for job in found.jobs}
