"""Clean-up passes on graphs that a careless pass would break."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit import quality
from edgekit.quantize.graph import ATEN
from edgekit.quantize.prepare import as_module, export_program, prepare, run


class Attention(nn.Module):
    """PyTorch's own, whose copies make the views after them possible."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.attention(x, x, x)[0]
        return found


@pytest.mark.parametrize("batch_first", [True, False])
def test_copies_that_a_view_needs_stay(batch_first: bool) -> None:
    torch.manual_seed(0)
    module, x = Attention(batch_first=batch_first).eval(), torch.randn(2, 12, 8)
    program, _ = prepare(export_program(module, (x,)), (x,))
    (found,) = run(program, (x,))
    assert quality.sqnr_db(module(x).detach().numpy(), found.numpy()) > 100


def test_other_copies_go() -> None:
    class Copies(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x.clone()).contiguous().clone() + 1

    x = torch.randn(2, 3)
    program, passes = prepare(export_program(Copies(), (x,)), (x,))
    assert "remove_no_ops" in passes
    targets = [n.target for n in as_module(program).graph.nodes if n.op == "call_function"]
    assert targets == [ATEN.relu.default, ATEN.add.Tensor]
