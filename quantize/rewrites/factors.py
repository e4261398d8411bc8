"""How far a factor can travel: from where a value is made six times too large to its consumers.

Dropping the division by six from a hard swish is exact where everything that the value reaches is
homogeneous (views, pools, products, sums of equally scaled values) until layers with constant
weights take the factor in. :func:`plan` finds out where that is so before anything is edited.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN
from edgekit.quantize.rewrites import edit

#: f(c * x) = c * f(x) for c > 0, in their first argument.
_HOMOGENEOUS = (
    *graph.SAME_VALUES,
    ATEN.mean.dim,
    ATEN.sum.dim_IntList,
    ATEN.avg_pool1d.default,
    ATEN.avg_pool2d.default,
    ATEN.adaptive_avg_pool1d.default,
    ATEN.adaptive_avg_pool2d.default,
    ATEN.max_pool1d.default,
    ATEN.adaptive_max_pool2d.default,
    ATEN.upsample_bilinear2d.vec,
    ATEN.relu.default,
    ATEN.leaky_relu.default,
    ATEN.abs.default,
    ATEN.neg.default,
    ATEN.chunk.default,
    ATEN.split.Tensor,
    ATEN.split_with_sizes.default,
    ATEN.unbind.int,
    ATEN.dropout.default,
    operator.getitem,
)
_PRODUCTS = (ATEN.mul.Tensor, ATEN.matmul.default, ATEN.bmm.default, ATEN.mm.default)


@dataclass(frozen=True)
class Plan:
    """``sources`` are the nodes whose factor can be taken in; ``layers`` the ones that do so.

    ``layers`` maps each layer to the factor by which its input grows.
    """

    sources: tuple[fx.Node, ...]
    layers: Mapping[fx.Node, float]


@dataclass(frozen=True)
class _Carried:
    """The factor that a value has, and the sources that it comes from."""

    factor: float
    sources: frozenset[fx.Node]


def plan(gm: fx.GraphModule, gains: Mapping[fx.Node, float]) -> Plan:
    """Which of the sources can be made larger by their (positive) gain, all at once.

    A source any of whose consumers cannot take the factor in is left out, with those that it meets
    there; the others are tried again without it.
    """
    left = dict(gains)
    while True:
        layers, blocked = _flow(gm, left)
        if not blocked:
            return Plan(tuple(left), layers)
        for source in blocked:
            del left[source]


def take_in(gm: fx.GraphModule, layers: Mapping[fx.Node, float]) -> None:
    """Divide the weight of each layer by the factor by which its input grows."""
    for layer, factor in layers.items():
        edit.scale_weight(gm, layer, 1 / factor)


def _flow(
    gm: fx.GraphModule, gains: Mapping[fx.Node, float]
) -> tuple[dict[fx.Node, float], set[fx.Node]]:
    carried: dict[fx.Node, _Carried] = {}
    layers: dict[fx.Node, float] = {}
    blocked: set[fx.Node] = set()
    for node in gm.graph.nodes:
        scaled = [carried[argument] for argument in node.all_input_nodes if argument in carried]
        if not scaled:
            if node in gains:
                carried[node] = _Carried(gains[node], frozenset({node}))
            continue
        sources = frozenset[fx.Node]().union(*(value.sources for value in scaled))
        if node in gains:
            blocked |= sources
        elif edit.layer_weight(gm, node) is not None:
            # With constant weights, only the layer's input can be scaled.
            layers[node] = scaled[0].factor
        else:
            factor = _output_factor(node, carried)
            if factor is None:
                blocked |= sources
            elif factor != 1:
                carried[node] = _Carried(factor, sources)
    return layers, blocked


def _output_factor(node: fx.Node, carried: Mapping[fx.Node, _Carried]) -> float | None:
    """The factor of a node's value, given those of its arguments; None where there is none."""
    if node.op != "call_function":
        return None

    def factor(argument: Any) -> float:
        found = carried.get(argument) if isinstance(argument, fx.Node) else None
        return 1.0 if found is None else found.factor

    if node.target in _PRODUCTS:
        return factor(node.args[0]) * factor(node.args[1])
    if node.target == ATEN.div.Tensor:
        return factor(node.args[0]) / factor(node.args[1])
    parts: tuple[Any, ...] = ()
    if node.target in graph.ADDITIONS:
        parts = node.args[:2]
    elif node.target == ATEN.cat.default:
        parts = tuple(node.args[0])  # type: ignore[arg-type]
    if parts:
        factors = {factor(part) for part in parts}
        return factors.pop() if len(factors) == 1 else None
    if node.target not in _HOMOGENEOUS or (node.target in graph.PADS and not _pads_with_zero(node)):
        return None
    return factor(node.args[0])


def _pads_with_zero(node: fx.Node) -> bool:
    if node.target == ATEN.constant_pad_nd.default:
        value = node.args[2] if len(node.args) > 2 else 0
        return bool(value == 0)
    mode = node.args[2] if len(node.args) > 2 else "constant"
    value = node.args[3] if len(node.args) > 3 else None
    return bool(mode != "constant" or value in (None, 0))
