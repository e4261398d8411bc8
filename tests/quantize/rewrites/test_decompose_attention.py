"""Attention written out computes the same, and loses its guarded softmax."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekit import quality
from edgekit.quantize import rewrites
from edgekit.quantize.graph import ATEN
from edgekit.quantize.prepare import as_module, re_export, run
from tests.quantize.rewrites.graphs import program, rewritten, targets


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, **self.options)


def operands(*shape: int, keys: int = 6) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    other = (*shape[:-2], keys, shape[-1])
    return torch.randn(shape), torch.randn(other), torch.randn(other)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 2, 5, 8), {}),
        ((2, 5, 8), {}),
        ((1, 2, 5, 8), {"scale": 0.3}),
        ((1, 2, 5, 8), {"is_causal": True}),
        ((1, 2, 5, 8), {"attn_mask": torch.linspace(-9, 0, 30).view(5, 6)}),
        ((2, 2, 5, 8), {"attn_mask": torch.zeros(2, 1, 5, 6).index_fill(3, torch.tensor(2), -1e9)}),
        ((1, 2, 5, 8), {"attn_mask": torch.full((5, 6), -torch.inf).triu(1)}),
    ],
)
def test_computes_the_same(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    inputs = operands(*shape)
    gm = program(Attention(**options), *inputs)
    count, result, db = rewritten(gm, "decompose_attention", *inputs)
    assert count == 1
    assert db > 100
    assert ATEN.softmax.int in targets(result)


@pytest.mark.parametrize(
    "options",
    [{"attn_mask": torch.ones(5, 6, dtype=torch.bool).tril()}, {"enable_gqa": True}],
)
def test_masks_of_booleans_and_shared_heads_stay(options: dict[str, Any]) -> None:
    inputs = operands(1, 2, 5, 8)
    count, _, _ = rewritten(program(Attention(**options), *inputs), "decompose_attention", *inputs)
    assert count == 0


def hiding_a_row() -> torch.Tensor:
    return torch.zeros(3, 6).index_fill(0, torch.tensor(1), -torch.inf)


def test_a_query_without_any_key_gets_zeros() -> None:
    inputs = operands(1, 1, 3, 4)
    gm = program(Attention(attn_mask=hiding_a_row()), *inputs)
    count, result, db = rewritten(gm, "decompose_attention", *inputs)
    assert (count, db > 100) == (1, True)
    assert not run(result, inputs)[0][0, 0, 1].any()


class Masked(nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, m: torch.Tensor) -> Any:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=m)


def test_a_mask_that_is_only_known_at_run_time_may_hide_all_keys() -> None:
    inputs = operands(1, 1, 3, 4)
    q, k, v = inputs
    gm = program(Masked(), *inputs, torch.zeros(3, 6))
    rewrites.apply(gm, ["decompose_attention"])
    changed = as_module(re_export(gm, (*inputs, torch.zeros(3, 6))))
    for mask in (torch.zeros(3, 6), hiding_a_row()):
        wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        (found,) = run(changed, (*inputs, mask))
        assert quality.sqnr_db(wanted.numpy(), found.numpy()) > 100


def test_masks_that_hide_no_row_cost_nothing() -> None:
    inputs = operands(1, 2, 5, 8)
    gm = program(Attention(attn_mask=torch.full((5, 6), -torch.inf).triu(1)), *inputs)
    rewrites.apply(gm, ["decompose_attention"])
    assert ATEN.amax.default not in targets(gm)


def test_a_view_of_the_result_holds_whatever_its_layout() -> None:
    class SelfAttention(nn.MultiheadAttention):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return super().forward(x, x, x, need_weights=False)[0]

    torch.manual_seed(0)
    x = torch.randn(1, 5, 8)
    gm = program(SelfAttention(8, 2, batch_first=True), x)
    assert ATEN.view.default in targets(gm)
    count, _, db = rewritten(gm, "decompose_attention", x)
    assert count == 1
    assert db > 100
