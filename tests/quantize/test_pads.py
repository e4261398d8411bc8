"""Pads of other values than zero: within the range of what they surround, and far beyond it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit.quantize.calibrate import extremes_of_sample
from edgekit.quantize.pads import pads_beyond
from tests.quantize.cases import RUNTIMES, case

functional = nn.functional


class Bordered(nn.Module):
    """Borders of ``value`` around a sigmoid, for a convolution and for a pooling."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)
        self.third, self.value = nn.Conv2d(8, 6, 3), value

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.first(x).sigmoid()
        padded = functional.pad(x, (1, 1, 1, 1), value=self.value)
        lowest = functional.pad(x, (1, 1, 1, 1), value=-1000 * self.value)
        return self.second(padded), self.third(functional.max_pool2d(lowest, 3, 2))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_border_far_from_the_values_is_kept(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = case(Bordered(5.0).eval(), tmp_path, ["x"])
    extremes = extremes_of_sample(given.gm, (torch.from_numpy(given.inputs[0][0]),))
    beyond = pads_beyond(given.gm, extremes)
    assert len(beyond) == 2
    artifact = given.export(
        runtime, "static_wi8_ai8", tmp_path / runtime, float_nodes=sorted(beyond)
    )
    assert min(given.sqnr_db(artifact, runtime)) > 30


def test_borders_within_the_values_or_of_zeros_are_int8(tmp_path: Path) -> None:
    class Inside(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            sides = (1, 1, 1, 1)
            y = x.sigmoid() + 0.1
            shown = functional.pad(y, sides, value=0.4), functional.pad(y, sides)
            return *shown, functional.pad(y, sides, "reflect")

    given = case(Inside().eval(), tmp_path, ["x"])
    extremes = extremes_of_sample(given.gm, (torch.from_numpy(given.inputs[0][0]),))
    assert pads_beyond(given.gm, extremes) == set()
