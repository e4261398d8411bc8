"""Outlier channels computed apart: found, exact in float, worth it in every runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit import codec, quality
from edgekit.bundle import write_raw_tensor
from edgekit.quantize import graph
from edgekit.quantize.base import example_inputs
from edgekit.quantize.debug import in_place_worker, own_worker
from edgekit.quantize.engine import Repaired, RepairSettings, repair_program
from edgekit.quantize.inspect import inspect_file
from edgekit.quantize.outliers import CHANNELS, find
from edgekit.quantize.prepare import run
from edgekit.quantize.promise import promised_share
from edgekit.quantize.recipes import RECIPES
from tests.quantize.cases import RUNTIMES, Case, case
from tests.quantize.nets import image_inputs, stored
from tests.quantize.rungs.test_dynamic import repaired
from tests.quantize.transformers import vit

RECIPE = RECIPES["dynamic_wi8_afp32"]
OUTLIERS = (5, 17, 80)
RUNGS = ("outlier_channels", "hessian_rounding")


class Outlying(nn.Module):
    """Two layers and a residual read what a layer norm gives, in which three channels stand out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(96)
        with torch.no_grad():
            self.norm.weight[list(OUTLIERS)] = 150.0
        self.query, self.value = nn.Linear(96, 96), nn.Linear(96, 96, bias=False)
        self.narrow = nn.Linear(96, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x.reshape(1, 32, 96))
        mixed = 0.01 * x + self.query(x).tanh() * self.value(x)
        result: torch.Tensor = self.head(torch.relu(self.narrow(mixed)).amax(1))
        return result


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    return case(Outlying().eval(), tmp_path_factory.mktemp("outlying"), ["x"])


@pytest.fixture(scope="module")
def mended(given: Case, tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Repaired]:
    folder = tmp_path_factory.mktemp("mended") / "made"
    done = repaired(given, folder, RepairSettings(RECIPE, RUNGS, max_drop=0.0))
    return replace(given, folder=folder), done


def test_they_are_found_where_layers_read_them(given: Case) -> None:
    samples = [(torch.from_numpy(image),) for image in image_inputs(8, seed=3)]
    layers = {layer.name: layer for layer in graph.layers(given.gm)}
    found = find(given.gm, samples, layers)
    norm, *_ = {
        str(layer.node.args[0]) for layer in layers.values() if "norm" in str(layer.node.args[0])
    }
    assert len(found[norm]) == CHANNELS and set(OUTLIERS) <= set(found[norm])
    assert find(given.gm, samples, set()) == {}
    narrow = [
        str(x.node.args[0])
        for x in layers.values()
        if graph.attribute(given.gm, x.weight).shape[1] == 16
    ]
    assert narrow and not set(narrow) & set(found), "too narrow for it to pay"


def test_the_program_computes_the_same_and_int8_gains(
    given: Case, mended: tuple[Case, Repaired]
) -> None:
    made, done = mended
    foot, apart, *_ = done.ladder
    assert done.recipe.steps[0] == apart.rung == "outlier_channels"
    assert apart.kept and apart.sqnr_db > foot.sqnr_db + 6
    assert f"{CHANNELS} channels" in apart.note
    whole = {layer.name for layer in graph.layers(made.gm)}
    assert set(done.recipe.float_nodes) < whole
    plain = repaired(given, made.folder / "plain", RepairSettings(RECIPE, RUNGS[:1], max_drop=0.0))
    split = replace(given, folder=made.folder / "plain").gm
    for image in image_inputs(4, seed=5):
        wanted, found = (run(gm, (torch.from_numpy(image),))[0] for gm in (given.gm, split))
        assert quality.sqnr_db(wanted.numpy(), found.numpy()) > 100
    assert plain.recipe.steps == RUNGS[:1]


@pytest.fixture(scope="module", params=RUNTIMES)
def exported(
    mended: tuple[Case, Repaired],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path]:
    """A runtime, and its artifact of the network with channels apart."""
    made, done = mended
    out, nodes = tmp_path_factory.mktemp("apart"), done.recipe.float_nodes
    return request.param, made.export(request.param, RECIPE.name, out, float_nodes=nodes)


def test_every_runtime_gains(
    given: Case, mended: tuple[Case, Repaired], exported: tuple[str, Path], tmp_path: Path
) -> None:
    made, done = mended
    runtime, file = exported
    plain = given.export(runtime, RECIPE.name, tmp_path / "plain")
    assert given.sqnr_db(file, runtime)[0] > given.sqnr_db(plain, runtime)[0] + 3
    found = inspect_file(file)
    promised = promised_share(made.gm, example_inputs(given.input_specs), done.recipe)
    assert promised is not None and found.int8_mac_share is not None
    assert promised <= found.int8_mac_share < 1


def test_its_layers_are_found_when_debugging(
    given: Case, mended: tuple[Case, Repaired], exported: tuple[str, Path], tmp_path: Path
) -> None:
    """Other layers have the names of the float program's: the linear ones are numbered."""
    made, done = mended
    runtime, file = exported
    golden = write_raw_tensor(tmp_path, "golden.raw", "x", given.inputs[0])
    payload = {
        "id": "apart",
        "runtime": runtime,
        "artifact": str(file),
        "program": str(given.folder / "program.pt2"),
        "repaired": str(made.folder),
        "recipe": codec.to_jsonable(done.recipe),
        "inputs": codec.to_jsonable(given.input_specs),
        "folder": str(tmp_path),
        "golden": codec.to_jsonable((golden,)),
        "expected": [],
        "samples": [0, 1, 2],
        "work": str(tmp_path),
    }
    nodes = {node["name"]: node for node in own_worker(payload)}
    found = in_place_worker(payload)["measured"]
    layers = {layer.name: layer for layer in graph.layers(made.gm)}
    quantized = layers.keys() - set(done.recipe.float_nodes)
    assert quantized and {name for name in layers if nodes[name]["facts"]} == quantized
    for name in quantized:
        assert found[name]["sqnr_db"] > 20 and nodes[name]["facts"]["own_sqnr_db"] > 30, name


def test_it_is_found_again_and_replayed(
    given: Case, mended: tuple[Case, Repaired], tmp_path: Path
) -> None:
    made, done = mended
    folder = tmp_path / "replayed"
    replayed = repaired(given, folder, RepairSettings(done.recipe, (), max_drop=0.0, replay=True))
    assert replayed.recipe == done.recipe and replayed.digest == done.digest
    again = made.folder / "again"
    again.mkdir()
    assert _climbed_again(given, made, again) == done.digest


def _climbed_again(given: Case, made: Case, folder: Path) -> str:
    """The digest of a run with another budget, which finds the states of the first one."""
    choose = stored(folder, [image_inputs(24, seed=20)], ["x"])
    settings = RepairSettings(RECIPE, RUNGS, max_drop=0.5)
    done = repair_program(
        given.folder / "program.pt2",
        given.calibration,
        choose,
        settings,
        made.folder,
        made.folder,
        folder,
    )
    return done.digest


def test_where_there_are_none_nothing_is_changed(tmp_path: Path) -> None:
    plain = case(vit(2), tmp_path, ["x"])
    done = repaired(plain, tmp_path / "made", RepairSettings(RECIPE, RUNGS[:1], max_drop=0.0))
    assert [rung.kept for rung in done.ladder] == [True, False]
    assert done.ladder[1].note == "" and done.recipe.float_nodes == ()
