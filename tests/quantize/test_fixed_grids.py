"""Small results of sigmoid and softmax survive runtimes that have a grid of their own for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit import quality
from edgekit.quantize.fixed_grids import lost_on_fixed_grids
from edgekit.quantize.graph import ATEN
from edgekit.quantize.ranges import Range
from tests.quantize.cases import RUNTIMES, Case, case


class Faint(nn.Module):
    """Scores around 3e-4, as an output and taken in by a convolution, and a softmax over 1024
    positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            assert self.first.bias is not None
            self.first.bias -= 8

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.first(x)
        shares = torch.softmax(features.flatten(2), -1)
        return self.last(torch.sigmoid(features)), shares, torch.sigmoid(self.first(-x))


@pytest.fixture(scope="module")
def faint(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    return case(Faint().eval(), tmp_path_factory.mktemp("faint"), ["x"])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_a_fixed_grid_would_round_to_nothing(
    faint: Case, runtime: str, tmp_path: Path
) -> None:
    artifact = faint.export(runtime, "static_wi8_ai8", tmp_path)
    results = faint.run(artifact, runtime, tmp_path)
    for wanted, got in zip(faint.outputs, results, strict=True):
        centred = wanted - wanted.mean()
        assert quality.sqnr_db(centred, got - wanted.mean()) > 15


@pytest.mark.parametrize(("largest", "lost"), [(0.06, True), (0.07, False)])
def test_from_sixteen_steps_on_the_grid_is_fine_enough(largest: float, lost: bool) -> None:
    graph = torch.fx.Graph()
    score = graph.call_function(ATEN.sigmoid.default, (graph.placeholder("x"),))
    graph.output(score)
    gm = torch.fx.GraphModule(nn.Module(), graph)
    span = (0.0, largest)
    found = Range(minmax=span, percentile=span, histogram=span, mse=span)
    assert (lost_on_fixed_grids(gm, {score.name: found}) == {score.name}) is lost
