"""Attention on tensors of rank 2 or 3 -> the same on rank 4, with axes of length 1 in front.

PyTorch's ONNX exporter has attention for (batch, heads, length, width) only.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from edgekit.quantize.decompositions import Call, Emit
from edgekit.quantize.graph import ATEN

TARGETS = (ATEN.scaled_dot_product_attention.default,)
_RANK = 4


def expand(node: fx.Node, emit: Emit) -> Call | None:
    """See :mod:`edgekit.quantize.decompositions`."""
    rank = node.meta["val"].dim()
    if rank >= _RANK:
        return None

    def lifted(value: Any) -> Any:
        # A mask may have fewer axes than the queries; it is aligned with their last ones.
        if not isinstance(value, fx.Node) or value.meta["val"].dim() < rank:
            return value
        for _ in range(_RANK - rank):
            value = emit(ATEN.unsqueeze.default, value, 0)
        return value

    args = tuple(lifted(argument) for argument in node.args)
    kwargs = {name: lifted(argument) for name, argument in node.kwargs.items()}
    attended = emit(ATEN.scaled_dot_product_attention.default, *args, **kwargs)
    for _ in range(_RANK - rank - 1):
        attended = emit(ATEN.squeeze.dim, attended, 0)
    return (ATEN.squeeze.dim, (attended, 0), {})
