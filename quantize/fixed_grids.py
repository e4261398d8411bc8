"""Operators whose results a runtime rounds to a grid of its own, whatever calibration found.

The int8 kernels of a sigmoid or a softmax give multiples of 1/256 in TFLite and TorchScript. Values
that are all far below 1, as the scores of a detector that sees little or the softmax over many
tokens, are rounded to nothing there; they stay float.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from edgekit.quantize.graph import ATEN
from edgekit.quantize.ranges import Range

_STEPS: Mapping[object, float] = {
    ATEN.sigmoid.default: 1 / 256,
    ATEN.softmax.int: 1 / 256,
    ATEN._softmax.default: 1 / 256,
    ATEN._safe_softmax.default: 1 / 256,
    ATEN.tanh.default: 1 / 128,
}
#: Values spread evenly up to so many steps keep 30 dB.
_FEW = 16


def lost_on_fixed_grids(gm: fx.GraphModule, ranges: Mapping[str, Range]) -> set[str]:
    """Names of the nodes whose calibrated values all lie within :data:`_FEW` steps of zero."""
    found = set()
    for node in gm.graph.nodes:
        step = _STEPS.get(node.target) if node.op == "call_function" else None
        if step is None or node.name not in ranges:
            continue
        if max(map(abs, ranges[node.name].minmax)) < _FEW * step:
            found.add(node.name)
    return found
