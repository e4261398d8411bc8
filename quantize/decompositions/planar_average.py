"""Average pooling over three axes whose window has a length along the first only -> over two axes.

Local response normalisation averages over neighbouring channels that way. Rows and columns become
one axis for it.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from edgekit.quantize.decompositions import Call, Emit
from edgekit.quantize.graph import ATEN

TARGETS = (ATEN.avg_pool3d.default,)


def expand(node: fx.Node, emit: Emit) -> Call | None:
    """See :mod:`edgekit.quantize.decompositions`."""
    source, kernel = node.args[:2]
    assert isinstance(source, fx.Node)
    rest: Any = (*node.args[2:], *((), 0, False, True, None)[len(node.args) - 2 :])
    stride, padding, ceil_mode, count_padding, divisor = rest
    kernel = _triple(kernel)
    stride, padding = _triple(stride) or kernel, _triple(padding)
    if kernel[1:] != [1, 1] or stride[1:] != [1, 1] or padding[1:] != [0, 0]:
        return None
    shape, result = source.meta["val"].shape, node.meta["val"].shape
    flat = emit(ATEN.reshape.default, source, [*shape[:-2], shape[-2] * shape[-1]])
    windows = ([kernel[0], 1], [stride[0], 1], [padding[0], 0])
    pooled = emit(ATEN.avg_pool2d.default, flat, *windows, ceil_mode, count_padding, divisor)
    return (ATEN.reshape.default, (pooled, list(result)), {})


def _triple(value: Any) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * 3 if len(values) == 1 else values
