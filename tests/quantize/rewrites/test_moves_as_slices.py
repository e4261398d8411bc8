"""Slices in the place of splits and selections move the very same values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from edgekit.quantize.graph import ATEN
from edgekit.quantize.prepare import run
from tests.quantize.rewrites.graphs import program, rewritten, targets

GONE = {
    ATEN.split.Tensor,
    ATEN.split_with_sizes.default,
    ATEN.chunk.default,
    ATEN.unbind.int,
    ATEN.select.int,
    ATEN.squeeze.dim,
    ATEN.squeeze.dims,
    ATEN.unsqueeze.default,
    ATEN.expand.default,
}
Outputs = torch.Tensor | Sequence[torch.Tensor]


class Moves(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        moved = self.function(x * 2)
        parts = (moved,) if isinstance(moved, torch.Tensor) else tuple(moved)
        return tuple(part + 1 for part in parts)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.chunk(2, 1),
        lambda x: x.chunk(4, -1),
        lambda x: x.split(4, 1),
        lambda x: x.split([1, 2, 3], dim=1),
        lambda x: x.split([1, 2, 3], dim=1)[-1],
        lambda x: x.unbind(1),
        lambda x: x.view(1, 3, 2, 5, 7).permute(1, 0, 2, 3, 4).unbind(0)[2],
        lambda x: x[:, -1],
        lambda x: x[0, 1, :, 2],
        lambda x: x[:, :1].squeeze(1),
        lambda x: x.expand(1, 6, 5, 7).relu(),
        lambda x: x.unsqueeze(1),
    ],
)
def test_moves_the_same_values(function: Callable[[torch.Tensor], Outputs]) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 6, 5, 7)
    gm = program(Moves(function), x)
    assert GONE & set(targets(gm))
    count, result, _ = rewritten(gm, "moves_as_slices", x)
    assert count > 0
    assert not GONE & set(targets(result))
    assert all(torch.equal(a, b) for a, b in zip(run(gm, (x,)), run(result, (x,)), strict=True))


def test_an_expansion_that_repeats_values_stays() -> None:
    x = torch.randn(1, 1, 5, 7)
    count, _, _ = rewritten(program(Moves(lambda x: x.expand(1, 6, 5, 7)), x), "moves_as_slices", x)
    assert count == 0
