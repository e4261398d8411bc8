"""Pads with a value beyond all that they surround, which the grid of what is padded does not hold.

Runtimes and simulation give a pad the grid of its input, as they do for all that only moves values:
there a border of fives around a sigmoid would be one of ones. Such a pad is float, with a range of
its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from edgekit.quantize import graph


def pads_beyond(gm: fx.GraphModule, extremes: Mapping[str, tuple[float, float]]) -> set[str]:
    """Names of the pads that go beyond their input, and beyond zero, which every grid has.

    Args:
        extremes: the least and largest value of each float tensor by node name, from calibration.
    """
    found = set()
    for node in gm.graph.nodes:
        if node.target not in graph.PADS or node.name not in extremes:
            continue
        low, high = extremes[node.name]
        least, most = extremes.get(node.args[0].name, (low, high))
        if low < min(least, 0.0) or high > max(most, 0.0):
            found.add(node.name)
    return found


def moving(gm: fx.GraphModule, beyond: set[str]) -> set[str]:
    """Names of the nodes that share the range of their input: they move its values and add none.

    Neither the pads of ``beyond`` are among them nor what moves their values: a pooling behind one
    may leave the border out.
    """
    found: set[str] = set()
    apart = set(beyond)
    for node in gm.graph.nodes:
        if node.op != "call_function" or node.target not in graph.SAME_VALUES:
            continue
        if node.name in apart or node.args[0].name in apart:
            apart.add(node.name)
        else:
            found.add(node.name)
    return found
