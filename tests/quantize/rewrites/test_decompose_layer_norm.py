"""Layer norm written out computes the same, with and without an affine part."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.quantize.graph import ATEN
from tests.quantize.rewrites.graphs import program, rewritten, targets


@pytest.mark.parametrize("shape", [(1, 7, 16), (1, 16), (2, 3, 5, 16)])
@pytest.mark.parametrize("affine", [True, False])
def test_computes_the_same(shape: tuple[int, ...], affine: bool) -> None:
    torch.manual_seed(0)
    norm = nn.LayerNorm(16, eps=1e-3, elementwise_affine=affine)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(shape) * 5 + 3
    count, result, db = rewritten(program(norm, x), "decompose_layer_norm", x)
    assert count == 1
    assert db > 100
    assert ATEN.layer_norm.default not in targets(result)


def test_a_norm_over_two_axes_stays() -> None:
    x = torch.randn(1, 3, 4, 5)
    count, _, _ = rewritten(program(nn.LayerNorm((4, 5)), x), "decompose_layer_norm", x)
    assert count == 0
