"""SiLU as ``x * sigmoid(x)``, so that quantizers that know products but not SiLU make it int8."""

from __future__ import annotations

from torch import fx

from edgekit.quantize.graph import ATEN
from edgekit.quantize.rewrites import edit


def apply(gm: fx.GraphModule) -> int:
    """Rewrite every SiLU. Exact up to float rounding."""
    found = [node for node in gm.graph.nodes if node.target == ATEN.silu.default]
    for node in found:
        gate = edit.insert(gm, node, ATEN.sigmoid.default, node.args[0])
        edit.replace(node, edit.insert(gm, node, ATEN.mul.Tensor, node.args[0], gate))
    return len(found)
