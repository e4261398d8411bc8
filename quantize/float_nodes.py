"""Which nodes of a program compute in float, given those that have to, and which layers do not.

A runtime computes a layer and the clamp after it in one kernel, so both are float or neither; and
a float value that is only moved stays float, because rounding it there would give all of it one
scale.
"""

from __future__ import annotations

import operator
from collections.abc import Collection

from torch import fx

from edgekit.errors import ExportFailed
from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN

_MOVES = (
    *graph.SAME_VALUES,
    ATEN._unsafe_view.default,
    ATEN.split.Tensor,
    ATEN.split_with_sizes.default,
    ATEN.chunk.default,
    ATEN.unbind.int,
    operator.getitem,
)
_FUSED = (*graph.CONVOLUTIONS, *graph.LINEARS, *graph.ADDITIONS, ATEN.mul.Tensor)


def float_closure(gm: fx.GraphModule, names: Collection[str]) -> frozenset[str]:
    """``names``, what is fused with them, and what only moves values that are float.

    Raises:
        ExportFailed: the program has no node of one of the names.
    """
    unknown = set(names) - {node.name for node in gm.graph.nodes}
    if unknown:
        raise ExportFailed(
            "The recipe leaves nodes in float that the program does not have: "
            f"{', '.join(sorted(unknown))}.",
            remedy="Node names belong to one prepared program; choose them anew for this one.",
        )
    found = set(names)
    for node in gm.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in _FUSED:
            clamp = graph.fused_activation(node)
            if clamp is not None and found & {node.name, clamp.name}:
                found |= {node.name, clamp.name}
        elif _moves(node) and node.args[0].name in found:
            found.add(node.name)
    return frozenset(found)


def _moves(node: fx.Node) -> bool:
    """Whether a node gives the very values of its first argument."""
    if node.target in (ATEN.maximum.default, ATEN.minimum.default):
        return node.args[0] is node.args[1]
    return node.target in _MOVES


def linear_layers(gm: fx.GraphModule, float_nodes: Collection[str]) -> frozenset[str]:
    """Names of the linear layers with constant weights that do not stay float."""
    found = {layer.name for layer in graph.layers(gm) if layer.node.target in graph.LINEARS}
    return frozenset(found - float_closure(gm, float_nodes))


def dynamic_layers(gm: fx.GraphModule, float_nodes: Collection[str]) -> frozenset[str]:
    """The layers that dynamic INT8 quantizes: linear ones with constant weights.

    Convolutions are not among them: one scale for a whole feature map, found at run time, costs
    more than a calibrated one and gains nothing. Products of two activations stay float too.

    Raises:
        ExportFailed: there is none.
    """
    found = linear_layers(gm, float_nodes)
    if not found:
        raise ExportFailed(
            "The model has no linear layer that dynamic INT8 could quantize.",
            remedy="Use a static recipe, which quantizes convolutions as well.",
        )
    return found
