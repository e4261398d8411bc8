"""The repair ladder: climbed in order, only as far as needed, and found again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from edgekit.data import SampleSet
from edgekit.quantize import graph, memory
from edgekit.quantize.engine import PROGRAM, RepairSettings, repair_program
from edgekit.quantize.ladder import FOOT, _better, climb, replay
from edgekit.quantize.memory import input_bytes, live_bytes, output_bytes
from edgekit.quantize.prepare import as_module
from edgekit.quantize.recipes import RECIPES
from edgekit.quantize.rungs import RUNGS, Rung
from edgekit.quantize.rungs.base import Quality, Sample, SimulatedJudge, Work
from edgekit.quantize.simulate import round_weight
from edgekit.types import Metric, RungResult
from tests.quantize.rungs.work import make_work

STATIC = tuple(name for name, rung in RUNGS.items() if rung.static)
FREE = ("bias_correction", "hessian_rounding", "ranges")


def rungs(*names: str) -> list:  # type: ignore[type-arg]
    return [RUNGS[name] for name in names]


def test_every_kept_rung_gains_and_the_rest_is_undone(
    exported: torch.export.ExportedProgram, sets: dict[str, SampleSet], tmp_path: Path
) -> None:
    work = make_work(exported, sets, tmp_path)
    steps, results = climb(work, rungs(*STATIC), tmp_path)
    assert [r.rung for r in results][:4] == [FOOT, *FREE]
    best = results[0]
    for result in results[1:]:
        if result.kept:
            assert result.sqnr_db >= best.sqnr_db + 0.1 or result.drop < best.drop
            best = result
    kept = {r.rung for r in results if r.kept} - {FOOT}
    assert set(steps) == kept != set()
    left = work.judge(work)
    assert (left.sqnr_db, left.drop) == (best.sqnr_db, best.drop), "left as the best state gives it"


def test_a_rung_changes_what_it_is_for_and_leaves_the_rest_of_those_below_intact(
    exported: torch.export.ExportedProgram, sets: dict[str, SampleSet], tmp_path: Path
) -> None:
    work = make_work(exported, sets, tmp_path)
    work.training = lambda: work.calibration(4)
    original = work.reference.state_dict()
    for rung in sorted((RUNGS[name] for name in STATIC), key=lambda rung: rung.stage):
        kind, float_nodes, before = work.kind, work.float_nodes, work.constants()
        rung.apply(work)
        after = work.constants()
        assert (kind != work.kind) <= (rung.name == "ranges")
        assert (float_nodes != work.float_nodes) <= (rung.name == "float_layers")
        for layer in graph.layers(work.program):
            assert layer.bias is not None
            taken = rung.name == "float_layers" and layer.name in work.float_nodes - float_nodes
            trained = rung.name == "quantization_aware_training"
            for name, rungs_that_may in (
                (layer.weight, ("hessian_rounding", "adaptive_rounding")),
                (layer.bias, ("adaptive_rounding", "bias_correction")),
            ):
                if not (taken or trained or rung.name in rungs_that_may):
                    assert torch.equal(before[name], after[name]), (rung.name, name)
            if rung.name in ("hessian_rounding", "adaptive_rounding", "bias_correction"):
                on_grid = round_weight(after[layer.weight], layer.channel_axis)
                assert torch.allclose(on_grid, after[layer.weight], atol=1e-7), rung.name
            if rung.name == "bias_correction":
                assert not torch.equal(before[layer.bias], after[layer.bias])
    for name, value in work.reference.state_dict().items():
        assert torch.equal(value, original[name])


def test_the_order_of_application_is_not_that_of_climbing(
    exported: torch.export.ExportedProgram, sets: dict[str, SampleSet], tmp_path: Path
) -> None:
    """Biases are corrected after the weights were rounded, whichever was tried first."""
    work = make_work(exported, sets, tmp_path)
    steps, _ = climb(work, rungs("bias_correction", "hessian_rounding"), tmp_path)
    assert steps == ("hessian_rounding", "bias_correction")
    again = make_work(exported, sets, tmp_path)
    replay(again, dataclasses.replace(RECIPES["static_wi8_ai8"], steps=steps, ranges="minmax"))
    for name, value in work.constants().items():
        assert torch.equal(value, again.constants()[name])


def test_a_kept_budget_needs_no_costly_rung(
    exported: torch.export.ExportedProgram, sets: dict[str, SampleSet], tmp_path: Path
) -> None:
    _, results = climb(make_work(exported, sets, tmp_path, max_drop=0.9), rungs(*STATIC), tmp_path)
    assert {r.rung for r in results} <= {FOOT, *FREE}


def test_another_budget_uses_what_was_climbed(
    exported: torch.export.ExportedProgram,
    sets: dict[str, SampleSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loose = make_work(exported, sets, tmp_path, max_drop=-0.5)
    _, first = climb(loose, rungs(*FREE, "adaptive_rounding"), tmp_path)
    tight = make_work(exported, sets, tmp_path)

    def judge_again(work: Work, limit: int = 0) -> None:
        raise AssertionError("judged again")

    tight.judge = judge_again  # type: ignore[assignment]
    _, second = climb(tight, rungs(*FREE, "adaptive_rounding"), tmp_path)
    assert second == first
    for name, value in loose.constants().items():
        assert torch.equal(value, tight.constants()[name])


@pytest.mark.parametrize(
    ("found", "steps"),
    [
        (Quality(24.0, 0.08), ()),  # nearer to float, and out of the budget
        (Quality(24.0, 1 - 0.94), ("bias_correction",)),  # 0.06 comes out as 0.06000000000000005
    ],
)
def test_no_rung_leads_out_of_a_budget_that_was_kept(
    found: Quality,
    steps: tuple[str, ...],
    exported: torch.export.ExportedProgram,
    sets: dict[str, SampleSet],
    tmp_path: Path,
) -> None:
    work = make_work(exported, sets, tmp_path, max_drop=0.06)
    given = iter((Quality(20.0, 0.05), found))
    work.judge = lambda work, limit=0: next(given)
    kept, results = climb(work, rungs("bias_correction", "float_layers"), tmp_path)
    assert kept == steps
    assert [result.rung for result in results] == [FOOT, "bias_correction"], "within the budget"


def nothing(work: Work) -> str:
    """A rung that finds nothing to change."""
    return ""


def test_nothing_is_done_again_on_top_of_a_rung_that_changed_nothing(
    exported: torch.export.ExportedProgram, sets: dict[str, SampleSet], tmp_path: Path
) -> None:
    idle = Rung("nothing", f"{__name__}:nothing", stage=5)
    work = make_work(exported, sets, tmp_path)
    steps, results = climb(work, [*rungs("bias_correction"), idle], tmp_path)
    assert steps == ("bias_correction",)
    assert len(list(tmp_path.glob("rungs-*"))) == 3, "foot, biases, the idle rung by itself"
    _, biases, last = results
    assert (last.kept, last.sqnr_db, last.drop) == (False, biases.sqnr_db, biases.drop)


def test_a_cut_leaves_whole_rungs_only(
    exported: torch.export.ExportedProgram, sets: dict[str, SampleSet], tmp_path: Path
) -> None:
    work = make_work(exported, sets, tmp_path)
    judge, calls = work.judge, []

    def cut(work: Work, limit: int = 256) -> object:
        calls.append(limit)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return judge(work, limit)

    work.judge = cut  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        climb(work, rungs("bias_correction"), tmp_path)
    assert len(list(tmp_path.glob("rungs-*"))) == 2, "the rung is there"
    assert len(list(tmp_path.glob("rungs-*/quality.json"))) == 1, "and has no judgement yet"
    fresh = make_work(exported, sets, tmp_path)
    _, resumed = climb(fresh, rungs("bias_correction"), tmp_path)
    _, clean = climb(make_work(exported, sets, tmp_path), rungs("bias_correction"), tmp_path / "x")
    assert [strip(r) for r in resumed] == [strip(r) for r in clean]


def test_every_rung_replayed_gives_the_same_weights(
    exported: torch.export.ExportedProgram, sets: dict[str, SampleSet], tmp_path: Path
) -> None:
    work = make_work(exported, sets, tmp_path)
    steps, _ = climb(work, rungs(*FREE, "float_layers"), tmp_path)
    assert "float_layers" in steps and work.float_nodes
    recipe = dataclasses.replace(
        RECIPES["static_wi8_ai8"],
        steps=steps,
        ranges=work.kind,
        float_nodes=tuple(sorted(work.float_nodes)),
    )
    again = make_work(exported, sets, tmp_path)
    replay(again, recipe)
    assert (again.kind, again.float_nodes) == (work.kind, work.float_nodes)
    for name, value in work.constants().items():
        assert torch.equal(value, again.constants()[name]), name


def strip(result: RungResult) -> RungResult:
    return dataclasses.replace(result, seconds=0.0)


def test_float_layers_gain_and_are_the_worth_their_cost(
    exported: torch.export.ExportedProgram, sets: dict[str, SampleSet], tmp_path: Path
) -> None:
    work = make_work(exported, sets, tmp_path)
    RUNGS["hessian_rounding"].apply(work)
    before = work.judge(work)
    assert RUNGS["float_layers"].apply(work)
    gains = json.loads((tmp_path / "sensitivities.json").read_text())["gains"]
    (layer,) = (x for x in graph.layers(work.reference) if x.name in work.float_nodes)
    assert gains[layer.name] > 0
    assert work.judge(work).sqnr_db > before.sqnr_db
    assert work.added_ns > 0
    original = graph.attribute(work.reference, layer.weight)
    assert torch.equal(work.constants()[layer.weight], original), "its weights are float again"


def test_adaptive_rounding_stays_on_the_grid_and_beats_nearest(
    exported: torch.export.ExportedProgram, sets: dict[str, SampleSet], tmp_path: Path
) -> None:
    work = make_work(exported, sets, tmp_path)
    before = work.judge(work)
    assert RUNGS["adaptive_rounding"].apply(work)
    new = work.constants()
    for layer in graph.layers(work.program):
        rounded = round_weight(new[layer.weight], layer.channel_axis)
        assert torch.allclose(rounded, new[layer.weight], atol=1e-6)
    assert work.judge(work).sqnr_db > before.sqnr_db


def test_a_costly_rung_is_not_kept_for_one_sample() -> None:
    rung, before = RUNGS["outlier_channels"], Quality(20.0, 0.042)
    assert not _better(Quality(20.05, 0.040), before, rung, 0.01)
    assert _better(Quality(20.05, 0.009), before, rung, 0.01)
    assert _better(Quality(21.5, 0.042), before, rung, 0.01)
    assert _better(Quality(20.05, 0.040), before, RUNGS["bias_correction"], 0.01)


def test_only_what_a_rung_changed_is_saved(
    exported: torch.export.ExportedProgram, sets: dict[str, SampleSet], tmp_path: Path
) -> None:
    work = make_work(exported, sets, tmp_path)
    steps, _ = climb(work, rungs("bias_correction", "hessian_rounding", "ranges"), tmp_path)
    assert "hessian_rounding" in steps
    layers = list(graph.layers(work.program))
    saved = [set(torch.load(path)) for path in tmp_path.glob("rungs-*/*.pt")]
    assert set() in saved, "the foot, which is the program"
    assert {layer.bias for layer in layers} in saved
    assert {layer.weight for layer in layers} in saved
    again = make_work(exported, sets, tmp_path)
    climb(again, rungs("bias_correction", "hessian_rounding", "ranges"), tmp_path)
    for name, value in work.constants().items():
        assert torch.equal(value, again.constants()[name])


def test_large_outputs_are_judged_on_fewer_samples(
    exported: torch.export.ExportedProgram,
    sets: dict[str, SampleSet],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    work = make_work(exported, sets, tmp_path)
    assert output_bytes(work.reference) == 40 and input_bytes(work.reference) == 12288
    assert live_bytes(work.reference) >= 12288 + 8 * 16 * 16 * 4
    monkeypatch.setattr(memory, "MAX_BYTES", 400)
    judge = SimulatedJudge(work.reference, sets["choose"], "agreement")
    seen: list[int] = []

    def simulate(samples: list[Sample]) -> list[list[torch.Tensor]]:
        seen.append(len(samples))
        return [[torch.zeros(1, 10)] for _ in samples]

    monkeypatch.setattr(work, "simulate", simulate)
    judge(work)
    assert seen == [1] * 10, "one at a time, because its activations take more than that"


@pytest.mark.parametrize(
    ("metric", "aimed"),
    [("relative_error", 0.18), ("cosine", 0.18), ("agreement", 0.2), (None, 0.2)],
)
def test_a_distance_is_aimed_at_below_the_budget(
    metric: Metric | None,
    aimed: float,
    exported: torch.export.ExportedProgram,
    sets: dict[str, SampleSet],
) -> None:
    """Files err a little more than the simulation; None is picked by the outputs, scores here."""
    judge = SimulatedJudge(as_module(exported), sets["choose"], metric)
    assert judge.aim(0.2) == pytest.approx(aimed)
    assert judge.metric == (metric or "agreement")


def test_a_distance_within_the_budget_but_above_the_aim_climbs_on(
    exported: torch.export.ExportedProgram, sets: dict[str, SampleSet], tmp_path: Path
) -> None:
    torch.export.save(exported, tmp_path / PROGRAM)

    def climbed(max_drop: float) -> list[str]:
        made = tmp_path / f"{max_drop}"
        made.mkdir()
        settings = RepairSettings(
            RECIPES["static_wi8_ai8"], ("float_layers",), max_drop, metric="relative_error"
        )
        given = (tmp_path / PROGRAM, sets["calibration"], sets["choose"], settings)
        repaired = repair_program(*given, tmp_path, tmp_path, made)
        drops.append(repaired.ladder[0].drop)
        return [result.rung for result in repaired.ladder]

    drops: list[float] = []
    assert climbed(1.0) == [FOOT]
    assert climbed(drops[0] / 0.85) == [FOOT]
    assert climbed(drops[0] / 0.95) == [FOOT, "float_layers"]
