"""Reading layer norms, and folding their factors and summands into what comes after them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from edgekit.quantize.rewrites import edit

_EPS = 1e-5


def arguments(node: fx.Node) -> tuple[Any, Any, float]:
    """Weight, bias and epsilon of a layer norm; the first two may be None."""
    weight, bias = (node.args[i] if len(node.args) > i else None for i in (2, 3))
    eps: Any = node.args[4] if len(node.args) > 4 else _EPS
    return weight, bias, float(eps)


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
