"""ConvNeXt's blocks without permutations compute the same, and keep means out of quantizers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN
from tests.quantize.rewrites.graphs import program, rewritten, targets


class Block(nn.Module):
    """As ConvNeXt's, with what may stand between the permutations given."""

    def __init__(self, *between: nn.Module, last: bool = False) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.between = nn.Sequential(*between)
        self.last = last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.between(self.depthwise(x).permute(0, 2, 3, 1))
        return y if self.last else torch.sigmoid(y.permute(0, 3, 1, 2))


def norm(affine: bool = True) -> nn.LayerNorm:
    made = nn.LayerNorm(6, eps=1e-3, elementwise_affine=affine)
    if affine:
        nn.init.normal_(made.weight)
        nn.init.normal_(made.bias)
    return made


@pytest.mark.parametrize(
    "between",
    [
        (norm(), nn.Linear(6, 9), nn.GELU(approximate="tanh"), nn.Linear(9, 6)),
        (norm(False), nn.Linear(6, 9, bias=False), nn.Hardswish()),
        (nn.Linear(6, 5), nn.ReLU6()),
        (norm(),),
        (norm(), nn.SiLU(), norm(), nn.Linear(6, 2)),
    ],
)
def test_a_chain_needs_no_permutation(between: tuple[nn.Module, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 6, 7, 5) * 2 + 1
    count, result, db = rewritten(program(Block(*between), x), "channels_first", x)
    assert count == 1
    assert db > 100
    found = targets(result)
    assert not {ATEN.permute.default, ATEN.linear.default, ATEN.layer_norm.default} & set(found)
    linears = sum(isinstance(part, nn.Linear) for part in between)
    assert len(list(graph.layers(result))) == 1 + linears, "means are no layers"


class Shifted(nn.Module):
    """A norm that shifts and does not scale; computed, or a constant."""

    def __init__(self, *, computed: bool) -> None:
        super().__init__()
        self.shift, self.linear = nn.Parameter(torch.randn(6)), nn.Linear(6, 9)
        self.computed = computed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(x).permute(0, 2, 3, 1)
        shift = x.mean((0, 2, 3)) if self.computed else self.shift
        y = nn.functional.layer_norm(y, (6,), None, shift)
        return torch.sigmoid(self.linear(y).permute(0, 3, 1, 2))


def test_a_norm_that_shifts_only_keeps_its_shift() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 6, 7, 5)
    count, _, db = rewritten(program(Shifted(computed=False), x), "channels_first", x)
    assert count == 1 and db > 100
    count, _, _ = rewritten(program(Shifted(computed=True), x), "channels_first", x)
    assert count == 0


def test_what_is_not_a_chain_stays() -> None:
    x = torch.randn(1, 6, 7, 7)
    for block in (
        Block(norm(), last=True),
        Block(nn.ReLU()),
        Block(norm(), nn.Softmax(-1)),
        Block(nn.LayerNorm((7, 6))),
    ):
        assert rewritten(program(block, x), "channels_first", x)[0] == 0
