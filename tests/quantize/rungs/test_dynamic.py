"""The ladder of dynamic INT8: simulated as a runtime computes it, and it mends real files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgekit.errors import DataError
from edgekit.quantize import graph
from edgekit.quantize.engine import Repaired, RepairSettings, repair_program
from edgekit.quantize.recipes import RECIPES
from tests.quantize.cases import Case, case
from tests.quantize.nets import Computed, build, image_inputs, stored
from tests.quantize.transformers import vit

RECIPE = RECIPES["dynamic_wi8_afp32"]
CHEAP = ("bias_correction", "hessian_rounding", "ranges")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case(vit(2), tmp_path_factory.mktemp("vit"), ["x"])


def repaired(given: Case, folder: Path, settings: RepairSettings) -> Repaired:
    """The repaired program in ``folder``, judged on the samples that the files are judged on."""
    folder.mkdir()
    test = folder / "test"
    test.mkdir()
    choose = stored(test, [image_inputs(24, seed=20)], ["x"])
    return repair_program(
        given.folder / "program.pt2", given.calibration, choose, settings, folder, folder, folder
    )


@pytest.fixture(scope="module")
def mended(given: Case, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Repaired]:
    """What the cheap rungs make of the case, and what they say of it."""
    folder = tmp_path_factory.mktemp("mended") / "made"
    done = repaired(given, folder, RepairSettings(RECIPE, CHEAP, max_drop=0.0))
    return replace(given, folder=folder), done


def test_the_ladder_mends_the_files_as_it_says(
    given: Case, mended: tuple[Case, Repaired], tmp_path: Path
) -> None:
    made, done = mended
    assert [rung.rung for rung in done.ladder] == ["calibration", *CHEAP[:2]], "no ranges to try"
    foot, *_, best = [rung for rung in done.ladder if rung.kept]
    assert best.sqnr_db > foot.sqnr_db + 1
    plain = given.export("torchscript", RECIPE.name, tmp_path / "plain")
    file = made.export("torchscript", RECIPE.name, tmp_path / "mended")
    for artifact, rung in ((plain, foot), (file, best)):
        found = given.sqnr_db(artifact, "torchscript")[0]
        assert found == pytest.approx(rung.sqnr_db, abs=0.5), rung


def test_only_what_dynamic_int8_rounds_is_changed(
    given: Case, mended: tuple[Case, Repaired]
) -> None:
    made = mended[0].gm
    changed = {
        before.node.target
        for before, after in zip(graph.layers(given.gm), graph.layers(made), strict=True)
        for name, again in ((before.weight, after.weight), (before.bias, after.bias))
        if name
        and again
        and not torch.equal(graph.attribute(given.gm, name), graph.attribute(made, again))
    }
    assert changed == {torch.ops.aten.linear.default}


def test_a_layer_that_hurts_stays_float(given: Case, tmp_path: Path) -> None:
    settings = RepairSettings(RECIPE, ("float_layers",), max_drop=-1.0)
    done = repaired(given, tmp_path / "made", settings)
    assert done.recipe.steps == ("float_layers",)
    assert done.ladder[-1].sqnr_db > done.ladder[0].sqnr_db
    linears = {x.name for x in graph.layers(given.gm) if x.node.target in graph.LINEARS}
    assert set(done.recipe.float_nodes) <= linears


def test_networks_that_compute_with_constants_climb_too(tmp_path: Path) -> None:
    """As Swin v2 does: positions from a table, and a bias of which a part is no parameter."""
    odd = case(build(Computed), tmp_path, ["x"])
    done = repaired(odd, tmp_path / "made", RepairSettings(RECIPE, CHEAP, max_drop=0.0))
    foot = done.ladder[0]
    assert foot.rung == "calibration" and foot.sqnr_db > 25


def test_without_calibration_samples_there_is_no_repair(given: Case, tmp_path: Path) -> None:
    test = tmp_path / "test"
    test.mkdir()
    choose = stored(test, [image_inputs(4, seed=20)], ["x"])

    def repair(settings: RepairSettings) -> Repaired:
        program = given.folder / "program.pt2"
        return repair_program(program, None, choose, settings, tmp_path, tmp_path, tmp_path)

    assert repair(RepairSettings(RECIPE, CHEAP, max_drop=0.0)).recipe == RECIPE
    saved = replace(RECIPE, steps=("hessian_rounding",))
    with pytest.raises(DataError, match="hessian_rounding"):
        repair(RepairSettings(saved, (), max_drop=0.0, replay=True))
    with pytest.raises(DataError, match="needs real samples"):
        repair(RepairSettings(RECIPES["static_wi8_ai8"], (), max_drop=0.0))
