"""Hard swish as ``x * relu6(x + 3)``, with its division by 6 in the weights of its consumers.

TFLite's delegate takes no int8 hard swish, so one breaks the graph into many delegates. Written
as ``x * relu6(x + 3) / 6`` TFLite's converter finds it again; without the division it does not.
"""

from __future__ import annotations

from torch import fx

from edgekit.quantize.graph import ATEN
from edgekit.quantize.rewrites import edit, factors

_GAIN = 6.0


def apply(gm: fx.GraphModule) -> int:
    """Rewrite every hard swish all of whose consumers can take the factor 6 in.

    Exact up to float rounding.
    """
    found = [node for node in gm.graph.nodes if node.target == ATEN.hardswish.default]
    plan = factors.plan(gm, dict.fromkeys(found, _GAIN))
    factors.take_in(gm, plan.layers)
    for node in plan.sources:
        source = node.args[0]
        shifted = edit.insert(gm, node, ATEN.add.Tensor, source, 3.0)
        clamped = edit.insert(gm, node, ATEN.hardtanh.default, shifted, 0.0, 6.0)
        edit.replace(node, edit.insert(gm, node, ATEN.mul.Tensor, source, clamped))
    return len(plan.sources)
