"""Dynamic INT8, weight-only INT8 and INT8 weights with INT16 activations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import registry
from edgekit.errors import ExportFailed
from edgekit.quantize.base import example_inputs
from edgekit.quantize.graph import layers
from edgekit.quantize.inspect import inspect_file
from edgekit.quantize.promise import promised_share
from edgekit.quantize.recipes import RECIPES
from tests.quantize.cases import RUNTIMES, Case, case, case_of
from tests.quantize.nets import Residual, build
from tests.quantize.transformers import vit

DYNAMIC = "dynamic_wi8_afp32"
#: Says that the right network came out, with untrained weights; benchmarks.quality holds the bars.
WORKS_DB = 25


@pytest.fixture(scope="module")
def small_vit(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case(vit(), tmp_path_factory.mktemp("vit"), ["x"])


@pytest.fixture(scope="module", params=RUNTIMES)
def dynamic(
    small_vit: Case, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A runtime, and its artifact of the whole network."""
    return request.param, small_vit.export(request.param, DYNAMIC, tmp_path_factory.mktemp("all"))


def test_every_linear_layer_is_dynamic_int8(
    small_vit: Case, dynamic: tuple[str, Path], tmp_path: Path
) -> None:
    runtime, artifact = dynamic
    assert small_vit.sqnr_db(artifact, runtime)[0] > WORKS_DB
    found = inspect_file(artifact)
    promised = promised_share(small_vit.gm, example_inputs(small_vit.input_specs), RECIPES[DYNAMIC])
    assert promised is not None and found.int8_mac_share is not None
    assert found.int8_mac_share == found.dynamic_mac_share
    assert promised <= found.int8_mac_share < 1
    assert (
        found.weight_bytes
        < 0.5 * inspect_file(small_vit.export(runtime, "fp32", tmp_path / "float")).weight_bytes
    )


def test_a_linear_layer_can_stay_float(
    small_vit: Case, dynamic: tuple[str, Path], tmp_path: Path
) -> None:
    runtime, artifact = dynamic
    first = next(layer.name for layer in layers(small_vit.gm) if "linear" in layer.name)
    whole = inspect_file(artifact)
    mixed = inspect_file(
        small_vit.export(runtime, DYNAMIC, tmp_path / "mixed", float_nodes=[first])
    )
    macs = 17 * 64 * 3 * 64
    assert mixed.int8_mac_share is not None and whole.int8_mac_share is not None
    assert mixed.macs == whole.macs and mixed.macs is not None
    assert mixed.int8_mac_share == pytest.approx(whole.int8_mac_share - macs / mixed.macs)


@pytest.mark.parametrize(
    "runtime", [r for r in RUNTIMES if "weight_only_wi8_afp32" in registry.RUNTIMES[r].recipes]
)
@pytest.mark.parametrize("net", ["vit", "convolutions"])
def test_weights_alone(small_vit: Case, net: str, runtime: str, tmp_path: Path) -> None:
    given = small_vit
    if net == "convolutions":
        given = case(build(Residual), tmp_path, ["x"])
    artifact = given.export(runtime, "weight_only_wi8_afp32", tmp_path / "out")
    assert given.sqnr_db(artifact, runtime)[0] > WORKS_DB
    found = inspect_file(artifact)
    assert found.int8_weight_mac_share is not None and found.int8_weight_mac_share > 0.9
    assert found.int8_mac_share == found.dynamic_mac_share, "no activation has a scale in the file"
    if runtime == "onnx" and net == "vit":
        # ONNX Runtime makes products of its own of these, which take activations as int8 blocks.
        assert found.int8_mac_share is not None and found.int8_mac_share > 0.85
        assert "MatMulNBits" not in {count.op for count in found.outside_ops}
    else:
        assert found.int8_mac_share == 0
        assert any("weight-only" in note for note in found.notes)


def test_int16_activations(tmp_path: Path) -> None:
    given = case(build(Residual), tmp_path, ["x"])
    narrow = given.export("tflite", "static_wi8_ai8", tmp_path / "int8")
    wide = given.export("tflite", "static_wi8_ai16", tmp_path / "int16")
    gained = given.sqnr_db(wide, "tflite")[0] - given.sqnr_db(narrow, "tflite")[0]
    assert gained > 3
    found = inspect_file(wide)
    assert (found.int8_mac_share, found.int8_weight_mac_share) == (0, 1)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_recipe_that_a_runtime_has_not_is_refused(
    small_vit: Case, runtime: str, tmp_path: Path
) -> None:
    for missing in set(RECIPES) - set(registry.RUNTIMES[runtime].recipes):
        with pytest.raises(ExportFailed, match=f"has no {missing}") as caught:
            small_vit.export(runtime, missing, tmp_path)
        assert DYNAMIC in caught.value.remedy


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_nothing_to_make_dynamic_is_said(runtime: str, tmp_path: Path) -> None:
    import torch

    given = case(torch.nn.Conv2d(3, 4, 3).eval(), tmp_path, ["x"])
    with pytest.raises(ExportFailed, match="no linear layer"):
        given.export(runtime, DYNAMIC, tmp_path / "out")


class Recurrent(nn.Module):
    """The products of a GRU have constant weights, too, and stay float in dynamic INT8."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(12, 16, batch_first=True), nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.gru(x)[0])
        return found


@pytest.mark.parametrize("runtime", ["onnx", "tflite", "torchscript"])
def test_recurrent_layers_stay_float(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    sets = [[rng.normal(size=(8, 1, 5, 12)).astype(np.float32)] for _ in range(2)]
    given = case_of(Recurrent().eval(), tmp_path, ["x"], *sets)
    artifact = given.export(runtime, DYNAMIC, tmp_path / "out")
    share = inspect_file(artifact).int8_mac_share
    assert share == pytest.approx(16 * 6 / (16 * 6 + 3 * 16 * (12 + 16)), abs=0.01)
    assert given.sqnr_db(artifact, runtime)[0] > 35
