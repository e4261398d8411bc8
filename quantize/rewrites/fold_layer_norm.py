"""The factors and summands of a layer norm, in the linear layers behind it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN
from edgekit.quantize.rewrites import edit


def apply(gm: fx.GraphModule) -> int:
    """Fold each layer norm over the last axis all of whose users are linear layers.

    Exact up to float rounding.
    """
    folded = 0
    for node in list(gm.graph.nodes):
        if node.target != ATEN.layer_norm.default or len(node.args[1]) != 1:
            continue
        weight, bias = (
            graph.constant(gm, node.args[i]) if len(node.args) > i else None for i in (2, 3)
        )
        if weight is None or not _read_by_linears_only(gm, node):
            continue
        for layer in list(node.users):
            fold_into(gm, layer, weight, bias)
        eps: Any = node.args[4:]
        node.args = (*node.args[:2], None, None, *eps)
        folded += 1
    return folded


def fold_into(
    gm: fx.GraphModule, layer: fx.Node, factors: torch.Tensor, summands: torch.Tensor | None
) -> None:
    """Let a linear layer or 1x1 convolution scale and shift its own input, per input channel."""
    weight, bias = edit.layer_weight(gm, layer), edit.layer_bias(gm, layer)
    assert weight is not None
    matrix = weight.double().flatten(1)
    edit.set_weight(gm, layer, (matrix * factors.double()).view(weight.shape))
    if summands is not None:
        shift = matrix @ summands.double()
        edit.set_bias(gm, layer, shift if bias is None else shift + bias.double())


def _read_by_linears_only(gm: fx.GraphModule, node: fx.Node) -> bool:
    return bool(node.users) and all(
        user.target in graph.LINEARS and edit.layer_weight(gm, user) is not None
        for user in node.users
    )
