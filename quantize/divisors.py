"""Quotients whose divisor is computed: an int8 grid that reaches far has zero for small divisors.

TFLite has an int8 division, and refuses to divide by zero while it runs. Norms and deviations, as
normalisations spelled out by hand divide by them, are small where nothing is to be seen.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN

_OF_TWO = (ATEN.div.Tensor, ATEN.div.Tensor_mode)
_OF_ONE = (ATEN.reciprocal.default, ATEN.rsqrt.default)


def quotients(gm: fx.GraphModule) -> set[str]:
    """Names of the divisions by what is computed, and of what the divisor is computed by, back to
    the layer, input or meeting of two values that it comes from."""
    layers = {layer.node for layer in graph.layers(gm)}
    computed: set[fx.Node] = set()
    found: set[str] = set()
    for node in gm.graph.nodes:
        if node.op == "placeholder" or not computed.isdisjoint(node.all_input_nodes):
            computed.add(node)
        divisor = _divisor(node)
        if divisor not in computed:
            continue
        found.add(node.name)
        while divisor in computed and divisor not in layers and divisor.op == "call_function":
            found.add(divisor.name)
            sources = [source for source in divisor.all_input_nodes if source in computed]
            divisor = sources[0] if len(sources) == 1 else None
    return found


def _divisor(node: fx.Node) -> Any:
    if node.op != "call_function":
        return None
    if node.target in _OF_TWO:
        return node.args[1]
    if node.target == ATEN.pow.Tensor_Scalar:
        exponent = node.args[1]
        return node.args[0] if isinstance(exponent, (int, float)) and exponent < 0 else None
    return node.args[0] if node.target in _OF_ONE else None
