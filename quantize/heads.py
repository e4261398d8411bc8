"""Outputs that are put together from parts of different scale, such as boxes and scores.

A detection head joins box coordinates (0..640) and class scores (0..1) in one tensor. In int8 both
would share the boxes' scale, and every score would round to zero. The tensor leaves the network as
float32 anyway, so the parts are joined in float, each dequantized from its own scale.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN
from edgekit.quantize.ranges import Range

_JOINS = (ATEN.cat.default, ATEN.stack.default)
#: Parts whose steps differ by less lose nothing worth a float operator.
_SAME_STEP = 1.25


def joined_outputs(gm: fx.GraphModule, ranges: Mapping[str, Range]) -> set[str]:
    """Names of the concatenations, and of what moves their values, between parts of different
    scale and the outputs."""
    found: set[str] = set()
    (output,) = (node for node in gm.graph.nodes if node.op == "output")
    for node in reversed(list(gm.graph.nodes)):
        if node.op != "call_function" or node.target not in (*_JOINS, *graph.SAME_VALUES):
            continue
        only_out = all(user is output or user.name in found for user in node.users)
        if node.users and only_out:
            found.add(node.name)
    joins = [
        node
        for node in gm.graph.nodes
        if node.name in found and node.target in _JOINS and _differ(node, ranges)
    ]
    kept: set[str] = set()
    for node in joins:
        kept |= _onwards(node, found)
    return kept


def _differ(node: fx.Node, ranges: Mapping[str, Range]) -> bool:
    parts = node.args[0]
    assert isinstance(parts, (list, tuple))
    widths = []
    for part in parts:
        if isinstance(part, fx.Node) and part.name in ranges:
            low, high = ranges[part.name].minmax
            widths.append(high - low)
    return len(widths) > 1 and max(widths) > _SAME_STEP * min(widths)


def _onwards(node: fx.Node, among: set[str]) -> set[str]:
    names = {node.name}
    for user in node.users:
        if user.name in among:
            names |= _onwards(user, among)
    return names
