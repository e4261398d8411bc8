"""Layer norm as elementwise operators and two matrix products, for delegates that have none.

XNNPACK takes means over the last two of four axes only; a mean over the last axis is a product with
a column of ``1 / n``, which it does take. Squares, differences and quotients are used where there
is a choice, because its quantizer makes products and sums int8, and a variance is no such thing.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN
from edgekit.quantize.rewrites import edit

_EPS = 1e-5


def apply(gm: fx.GraphModule) -> int:
    """Write out every layer norm over the last axis. Exact up to float rounding."""
    found = [node for node in gm.graph.nodes if node.target == ATEN.layer_norm.default]
    found = [node for node in found if len(node.args[1]) == 1]
    for node in found:
        _decompose(gm, node)
    return len(found)


def _decompose(gm: fx.GraphModule, node: fx.Node) -> None:
    weight, bias, eps = arguments(node)
    source: Any = node.args[0]
    size = source.meta["val"].shape[-1]
    column = graph.add_constant(gm, f"{node.name}_mean", torch.full((size, 1), 1 / size), node)

    def call(target: Any, *args: Any) -> fx.Node:
        return edit.insert(gm, node, target, *args)

    rows = (math.prod(node.meta["val"].shape[:-1]), size)
    flat = call(ATEN.reshape.default, source, rows)
    centred = call(ATEN.sub.Tensor, flat, call(ATEN.mm.default, flat, column))
    variance = call(ATEN.mm.default, call(ATEN.pow.Tensor_Scalar, centred, 2), column)
    deviation = call(ATEN.sqrt.default, call(ATEN.sub.Tensor, variance, -eps))
    result = call(ATEN.div.Tensor, centred, deviation)
    if weight is not None:
        result = call(ATEN.mul.Tensor, result, weight)
    if bias is not None:
        result = call(ATEN.add.Tensor, result, bias)
    edit.replace(node, call(ATEN.reshape.default, result, tuple(node.meta["val"].shape)))


def arguments(node: fx.Node) -> tuple[Any, Any, float]:
    """Weight, bias and epsilon of a layer norm; the first two may be None."""
    weight, bias = (node.args[i] if len(node.args) > i else None for i in (2, 3))
    eps: Any = node.args[4] if len(node.args) > 4 else _EPS
    return weight, bias, float(eps)
