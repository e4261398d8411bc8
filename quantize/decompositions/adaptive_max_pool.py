"""Adaptive max pooling -> max pooling where all windows are alike, else the maxima of slices.

Only PyTorch itself has it for any output size. A maximum over a window is the maximum of its rows'
maxima, so windows that differ in size are cut along one axis after the other.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import fx

from edgekit.quantize.decompositions import Call, Emit
from edgekit.quantize.graph import ATEN

#: The pool gives its maxima and where they were; what is replaced is the use of the maxima.
TARGETS = (operator.getitem,)


def expand(node: fx.Node, emit: Emit) -> Call | None:
    """See :mod:`edgekit.quantize.decompositions`."""
    pool, index = node.args
    assert isinstance(pool, fx.Node)
    if pool.target != ATEN.adaptive_max_pool2d.default or index != 0:
        return None
    # A program that was read from a file has a node for the places, used or not.
    if any(other.users for other in pool.users if other is not node):
        return None
    source: Any = pool.args[0]
    given = [int(size) for size in source.meta["val"].shape[-2:]]
    wanted = [int(size) for size in node.meta["val"].shape[-2:]]
    if all(size % count == 0 for size, count in zip(given, wanted, strict=True)):
        kernel = [size // count for size, count in zip(given, wanted, strict=True)]
        return (ATEN.max_pool2d.default, (source, kernel, kernel), {})
    rows = emit(ATEN.cat.default, _maxima(source, -2, given[0], wanted[0], emit), -2)
    return (ATEN.cat.default, (_maxima(rows, -1, given[1], wanted[1], emit), -1), {})


def _maxima(source: fx.Node, axis: int, size: int, count: int, emit: Emit) -> Sequence[fx.Node]:
    """The maximum of each window along one axis, whose bounds are those of PyTorch's kernel."""
    found = []
    for i in range(count):
        start, end = i * size // count, -(-(i + 1) * size // count)
        window = emit(ATEN.slice.Tensor, source, axis, start, end)
        found.append(emit(ATEN.amax.default, window, [axis], True))
    return found
