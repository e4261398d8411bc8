"""ExecuTorch computes hard swish in int8, whatever the grids before and behind it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.quantize.inspect import inspect_file
from tests.quantize.cases import case
from tests.quantize.test_check import saved, verdicts


class Swished(nn.Module):
    def __init__(self, scale: float, shift: float, *, twice: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3)
        self.first.weight.data *= scale
        assert self.first.bias is not None
        self.first.bias.data.fill_(shift)
        self.twice = twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.hardswish(self.first(x))
        found: torch.Tensor = self.last(x * x.mean((2, 3), keepdim=True) if self.twice else x)
        return found


# The grids of what goes in and of what comes out differ most where nearly all is negative; far
# below -3 nothing comes out at all.
@pytest.mark.parametrize(
    ("scale", "shift"), [(1, 0), (1e-5, 0), (2000, 0), (1, -2.5), (1, -4), (1, 40), (200, -900)]
)
def test_hard_swish_between_int8_values(scale: float, shift: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = case(Swished(scale, shift).eval(), tmp_path, ["x"])
    artifact = given.export("executorch", "static_wi8_ai8", tmp_path / "out")
    assert given.sqnr_db(artifact, "executorch")[0] > 34
    assert inspect_file(artifact).quantize_ops == 2, "that of the input, and that of the output"


def test_several_readers_share_its_int8_value(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = case(Swished(1, 0, twice=True).eval(), tmp_path, ["x"])
    artifact = given.export("executorch", "static_wi8_ai8", tmp_path / "out")
    assert given.sqnr_db(artifact, "executorch")[0] > 34
    assert inspect_file(artifact).quantize_ops == 2


# The least that is left where the hard swish is in float; rounding before and behind it costs more.
@pytest.mark.parametrize(("float_node", "least_db"), [("conv2d", 37), ("conv2d_1", 39.4)])
def test_float_beside_a_layer_in_float(float_node: str, least_db: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = case(Swished(1, 0).eval(), tmp_path, ["x"])
    artifact = given.export(
        "executorch", "static_wi8_ai8", tmp_path / "out", float_nodes=[float_node]
    )
    assert given.sqnr_db(artifact, "executorch")[0] > least_db


def test_float_as_the_output(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = case(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish()).eval(), tmp_path, ["x"])
    artifact = given.export("executorch", "static_wi8_ai8", tmp_path / "out")
    assert given.sqnr_db(artifact, "executorch")[0] > 38.5


def test_check_calls_it_int8(tmp_path: Path) -> None:
    program = saved(tmp_path, Swished(1, 0).eval(), (torch.zeros(1, 3, 32, 32),))
    assert verdicts("executorch", program)["hardswish"].fate == "int8"
