"""Split, chunk, unbind and select as slices, squeezes as reshapes, and no expansion to itself.

XNNPACK takes slices and reshapes, and hardly any of the others: each of them splits the graph in
two.
"""

from __future__ import annotations

import operator
from itertools import accumulate
from typing import Any

from torch import fx

from edgekit.quantize.graph import ATEN
from edgekit.quantize.rewrites import edit

_SPLITS = (
    ATEN.split.Tensor,
    ATEN.split_with_sizes.default,
    ATEN.chunk.default,
    ATEN.unbind.int,
)
_RESHAPES = (ATEN.squeeze.dim, ATEN.squeeze.dims, ATEN.unsqueeze.default)


def apply(gm: fx.GraphModule) -> int:
    """Rewrite all of them; exact to the bit."""
    changed = 0
    for node in list(gm.graph.nodes):
        if node.target in _SPLITS and all(u.target is operator.getitem for u in node.users):
            _slice_parts(gm, node)
        elif node.target == ATEN.select.int:
            arguments: Any = node.args
            source, axis, index = arguments
            size = source.meta["val"].shape[axis]
            edit.replace(node, _slice(gm, node, source, axis, index % size, 1))
        elif node.target in _RESHAPES:
            edit.replace(node, _reshape(gm, node, node.args[0], node))
        elif node.target == ATEN.expand.default and _shape(node) == _shape(node.args[0]):
            edit.replace(node, node.args[0])
        else:
            continue
        changed += 1
    return changed


def _slice_parts(gm: fx.GraphModule, node: fx.Node) -> None:
    source: Any = node.args[0]
    named: Any = node.args[1 if node.target == ATEN.unbind.int else 2 :]
    axis: Any = named[0] if named else node.kwargs.get("dim", 0)
    removes_axis = node.target == ATEN.unbind.int
    sizes = [1 if removes_axis else part.shape[axis] for part in node.meta["val"]]
    starts = [0, *accumulate(sizes)]
    for part in list(node.users):
        index: Any = part.args[1]
        index %= len(sizes)
        edit.replace(part, _slice(gm, part, source, axis, starts[index], sizes[index]))
    gm.graph.erase_node(node)


def _slice(
    gm: fx.GraphModule, node: fx.Node, source: fx.Node, axis: int, start: int, size: int
) -> fx.Node:
    """The part of ``source`` in the shape of ``node``, which it replaces."""
    made = edit.insert(gm, node, ATEN.slice.Tensor, source, axis, start, start + size)
    return _reshape(gm, node, made, node)


def _reshape(gm: fx.GraphModule, before: fx.Node, source: Any, like: fx.Node) -> fx.Node:
    if _shape(source) == _shape(like):
        made: fx.Node = source
        return made
    return edit.insert(gm, before, ATEN.reshape.default, source, _shape(like))


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)
