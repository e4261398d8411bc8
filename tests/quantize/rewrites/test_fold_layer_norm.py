"""Factors and summands of a layer norm move into all linear layers behind it, or into none."""

from __future__ import annotations

import torch
from torch import nn

from edgekit.quantize.graph import ATEN
from tests.quantize.rewrites.graphs import program, rewritten


class Projections(nn.Module):
    """Two linear layers read the norm; ``shared`` is one that reads it too, if there is one."""

    def __init__(self, shared: nn.Module | None = None) -> None:
        super().__init__()
        self.norm, self.shared = nn.LayerNorm(8), shared
        self.a, self.b = nn.Linear(8, 3), nn.Linear(8, 4, bias=False)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.norm(x)
        outputs = [self.a(y), self.b(y)]
        return tuple(outputs if self.shared is None else [*outputs, self.shared(y)])


def test_both_layers_take_it_in() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 5, 8) * 3
    count, result, db = rewritten(program(Projections(), x), "fold_layer_norm", x)
    assert count == 1
    assert db > 100
    (norm,) = (node for node in result.graph.nodes if node.target == ATEN.layer_norm.default)
    assert not [argument for argument in norm.args[2:4] if argument is not None]


def test_another_reader_stops_it() -> None:
    x = torch.randn(1, 5, 8)
    assert rewritten(program(Projections(nn.ReLU()), x), "fold_layer_norm", x)[0] == 0
