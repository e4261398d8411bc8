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
#: What a score that is masked out becomes. Finite, so that a row without any key gives no NaN.
_MASKED = float(torch.finfo(torch.float32).min)


def apply(gm: fx.GraphModule) -> int:
    """Write out every attention without mask, with a causal one, or with one that is added.

    Exact up to float rounding, but for queries that may attend to no key at all: they get the mean
    of all values where PyTorch gives zeros.
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
    def call(target: Any, *args: Any) -> fx.Node:
        return edit.insert(gm, node, target, *args)

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
    edit.replace(node, call(ATEN.reshape.default, result, tuple(node.meta["val"].shape)))
