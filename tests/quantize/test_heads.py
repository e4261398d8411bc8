"""Outputs joined from parts of different scale stay apart in INT8."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from edgekit.quantize.calibrate import calibrate
from edgekit.quantize.graph import ATEN
from edgekit.quantize.heads import joined_outputs
from edgekit.quantize.prepare import as_module, export_program, prepare


class Head(nn.Module):
    """Boxes in pixels and scores in 0..1, joined as detectors do."""

    def __init__(self, scale: float = 320.0, moved: bool = False, used_inside: bool = False):
        super().__init__()
        self.boxes, self.scores = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1)
        self.scale, self.moved, self.used_inside = scale, moved, used_inside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        boxes = torch.sigmoid(self.boxes(x)) * self.scale
        scores = torch.sigmoid(self.scores(x))
        joined = torch.cat([boxes.flatten(2), scores.flatten(2)], 1)
        if self.moved:
            joined = joined.transpose(1, 2)
        return torch.relu(joined) if self.used_inside else joined


def found(module: nn.Module) -> tuple[fx.GraphModule, set[str]]:
    torch.manual_seed(0)
    inputs = (torch.zeros(1, 3, 8, 8),)
    gm = as_module(prepare(export_program(module.eval(), inputs), inputs)[0])
    samples = [(torch.randn(1, 3, 8, 8),) for _ in range(4)]
    return gm, joined_outputs(gm, calibrate(gm, lambda: samples))


@pytest.mark.parametrize("moved", [False, True])
def test_the_join_and_what_moves_it_stay_float(moved: bool) -> None:
    gm, names = found(Head(moved=moved))
    joins = {n.name for n in gm.graph.nodes if n.target == ATEN.cat.default}
    moves = {n.name for n in gm.graph.nodes if n.target == ATEN.transpose.int}
    assert names == joins | moves
    assert len(moves) == moved


def test_parts_of_one_scale_stay_together() -> None:
    assert found(Head(scale=1.0))[1] == set()


def test_a_join_that_is_computed_with_is_not_an_output() -> None:
    assert found(Head(used_inside=True))[1] == set()
