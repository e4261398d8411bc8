"""Scaled dot-product attention as products and a plain softmax.

Converters write it out too, but with a softmax that guards against rows without any key
(``_safe_softmax``), whose comparisons and selections no delegate takes, and with products of four
axes, which they expand first.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN
from edgekit.quantize.rewrites import edit

_SDPA = ATEN.scaled_dot_product_attention.default
_FLOAT = torch.float32
#: What a score that is masked out becomes. Finite, so that a row without any key gives no NaN.
_MASKED = float(torch.finfo(torch.float32).min)


def apply(gm: fx.GraphModule) -> int:
    """Write out every attention without mask, with a causal one, or with one that is added.

    Exact up to float rounding. Queries that may attend to no key at all get zeros, as PyTorch
    gives them: a mask that could hold such a row is looked at for one.
    """
    found = [node for node in gm.graph.nodes if node.target == _SDPA and _is_plain(node)]
    for node in found:
        _decompose(gm, node)
    return len(found)


def _argument(node: fx.Node, index: int, name: str, default: Any) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _is_plain(node: fx.Node) -> bool:
    query, key, value = (node.args[i].meta["val"] for i in range(3))  # type: ignore[union-attr]
    mask = _argument(node, 3, "attn_mask", None)
    if mask is not None and not mask.meta["val"].is_floating_point():
        return False
    if _argument(node, 4, "dropout_p", 0.0) != 0 or node.kwargs.get("enable_gqa", False):
        return False
    same = query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
    return bool(same and query.dtype == torch.float32)


def _decompose(gm: fx.GraphModule, node: fx.Node) -> None:
    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return edit.insert(gm, node, target, *args, **kwargs)

    def stacked(operand: Any) -> fx.Node:
        shape = operand.meta["val"].shape
        return call(ATEN.reshape.default, operand, (count, *shape[-2:]))

    query, key, value = node.args[:3]
    leading = tuple(query.meta["val"].shape[:-2])  # type: ignore[union-attr]
    count = math.prod(leading)
    queries, width = query.meta["val"].shape[-2:]  # type: ignore[union-attr]
    keys = key.meta["val"].shape[-2]  # type: ignore[union-attr]
    scale = node.kwargs.get("scale")
    scaled = call(ATEN.mul.Tensor, query, width**-0.5 if scale is None else scale)
    turned = call(ATEN.transpose.int, stacked(key), 1, 2)
    scores = call(ATEN.bmm.default, stacked(scaled), turned)
    mask = _argument(node, 3, "attn_mask", None)
    if mask is not None:
        finite = call(ATEN.clamp.default, mask, _MASKED)
        apart = call(ATEN.reshape.default, scores, (*leading, queries, keys))
        masked = call(ATEN.add.Tensor, apart, finite)
        scores = call(ATEN.reshape.default, masked, (count, queries, keys))
    if _argument(node, 5, "is_causal", False):
        later = torch.full((queries, keys), _MASKED).triu(1)
        scores = call(
            ATEN.add.Tensor, scores, graph.add_constant(gm, f"{node.name}_mask", later, node)
        )
    shares = call(ATEN.softmax.int, scores, -1)
    result = call(ATEN.bmm.default, shares, stacked(value))
    result = call(ATEN.reshape.default, result, tuple(node.meta["val"].shape))
    if mask is not None and _may_hide_all(gm, mask):
        highest = call(ATEN.amax.default, mask, [-1], True)
        attends = call(ATEN.ge.Scalar, highest, _MASKED)
        result = call(ATEN.mul.Tensor, result, call(ATEN._to_copy.default, attends, dtype=_FLOAT))
    edit.replace(node, result)


def _may_hide_all(gm: fx.GraphModule, mask: fx.Node) -> bool:
    """Whether a row of an added mask may be minus infinity throughout; False where it is not."""
    known = graph.constant(gm, mask)
    return known is None or bool((known.amax(-1) < _MASKED).any())
