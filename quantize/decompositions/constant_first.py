"""A constant less a tensor, or divided by one -> the tensor's negative, or its power of -1, first.

TensorFlow's converter takes a constant that comes first into the convolution or clamp before it as
if it came last: ``1 - conv(x)`` becomes ``conv(x) - 1``.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from edgekit.quantize.decompositions import CONSTANT, Call, Emit
from edgekit.quantize.graph import ATEN

_REVERSED = (ATEN.rsub.Scalar, ATEN.rsub.Tensor)
TARGETS = (*_REVERSED, ATEN.sub.Tensor, ATEN.div.Tensor, ATEN.reciprocal.default)


def expand(node: fx.Node, emit: Emit) -> Call | None:
    """See :mod:`edgekit.quantize.decompositions`."""
    if any(not operand.meta["val"].is_floating_point() for operand in node.all_input_nodes):
        return None
    if node.target == ATEN.reciprocal.default:
        return (ATEN.pow.Tensor_Scalar, (node.args[0], -1.0), {})
    first, second = node.args[1::-1] if node.target in _REVERSED else node.args[:2]
    if not isinstance(second, fx.Node):
        return None
    if isinstance(first, fx.Node) and not first.meta.get(CONSTANT):
        # What is computed from constants alone is folded by now.
        return None
    if node.target == ATEN.div.Tensor:
        return (ATEN.mul.Tensor, (emit(ATEN.pow.Tensor_Scalar, second, -1.0), first), {})
    alpha: Any = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
    return (ATEN.add.Tensor, (emit(ATEN.mul.Tensor, second, -alpha), first), {})
