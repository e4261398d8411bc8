"""A transposed convolution with output padding -> one with less padding, cut at the front.

Output padding adds rows and columns behind. Less padding adds them behind and in front, where they
are cut off again.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from edgekit.quantize.decompositions import Call, Emit
from edgekit.quantize.graph import ATEN

TARGETS = (ATEN.conv_transpose2d.input,)
_PADDING, _OUTPUT_PADDING = 4, 5


def expand(node: fx.Node, emit: Emit) -> Call | None:
    """See :mod:`edgekit.quantize.decompositions`."""
    if len(node.args) <= _OUTPUT_PADDING:
        return None
    padding, extra = _pair(node.args[_PADDING]), _pair(node.args[_OUTPUT_PADDING])
    # Where more is added than was taken away, those rows hold nothing but the bias.
    if not any(extra) or any(more > less for more, less in zip(extra, padding, strict=True)):
        return None
    less = [before - more for before, more in zip(padding, extra, strict=True)]
    args = (*node.args[:_PADDING], less, [0, 0], *node.args[_OUTPUT_PADDING + 1 :])
    whole = emit(ATEN.conv_transpose2d.input, *args)
    height, width = (int(size) for size in whole.meta["val"].shape[-2:])
    rows = emit(ATEN.slice.Tensor, whole, -2, extra[0], height)
    return (ATEN.slice.Tensor, (rows, -1, extra[1], width), {})


def _pair(value: Any) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * 2 if len(values) == 1 else values
