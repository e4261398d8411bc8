"""Attention masks: values of minus infinity, or as large, that an int8 grid cannot hold.

A mask is added to the scores (or put in their place) before a softmax makes zeros of it. On the way
the largest score is nothing beside it, so all of them would be rounded to one number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN

#: Beyond this, in either direction, a value is a mask; no activation of a network comes near.
BOUND = 1e30
#: Masks of -1e9 or -1e4 are as common. They are masks only where a softmax takes them in.
_LARGE = 1e3

_ATTENTION = ATEN.scaled_dot_product_attention.default
_SOFTMAXES = (
    ATEN.softmax.int,
    ATEN._softmax.default,
    ATEN._safe_softmax.default,
    ATEN.log_softmax.int,
    ATEN._log_softmax.default,
    _ATTENTION,
)
_CAUSAL = 5  # position of is_causal

#: What may give a value as large as its largest operand. Anything else takes a mask in and gives
#: something small: softmax, sigmoid, a comparison.
_CARRIERS = (
    *graph.SAME_VALUES,
    ATEN._unsafe_view.default,
    *graph.ADDITIONS,
    ATEN.add.Scalar,
    ATEN.sub.Scalar,
    ATEN.mul.Tensor,
    ATEN.mul.Scalar,
    ATEN.div.Tensor,
    ATEN.div.Scalar,
    ATEN.neg.default,
    ATEN.rsub.Scalar,
    ATEN.rsub.Tensor,
    ATEN.maximum.default,
    ATEN.minimum.default,
    ATEN.where.self,
    ATEN.where.ScalarOther,
    ATEN.where.ScalarSelf,
    ATEN.masked_fill.Scalar,
    ATEN.masked_fill.Tensor,
    ATEN.full.default,
    ATEN.full_like.default,
    ATEN.scalar_tensor.default,
    ATEN.new_full.default,
    ATEN.cat.default,
    ATEN.triu.default,
    ATEN.tril.default,
    ATEN.index.Tensor,
    ATEN.gather.default,
    ATEN.repeat.default,
    ATEN._to_copy.default,
    ATEN.to.dtype,
)


def masked_nodes(gm: fx.GraphModule) -> set[str]:
    """Names of the nodes that hold or take in a mask, which must stay float.

    They are those from the constant that the mask is made of up to and including the softmax that
    consumes it, and whatever else takes in values beyond :data:`BOUND`. Attention that is told to
    be causal makes its mask by itself.
    """
    beyond = _reached(gm, BOUND)
    to_softmax = _leading_to(_reached(gm, _LARGE), _SOFTMAXES)
    causal = {node for node in gm.graph.nodes if node.target == _ATTENTION and _is_causal(node)}
    return {node.name for node in beyond | to_softmax | causal}


def _reached(gm: fx.GraphModule, bound: float) -> set[fx.Node]:
    """The operators that give or take in values beyond ``bound``, which come from constants."""
    large = _large_constants(gm, bound)
    found: set[fx.Node] = {node for node in large if node.op == "call_function"}
    for node in gm.graph.nodes:
        if node.op != "call_function" or node in found:
            continue
        numbers = _numbers(node)
        if large.isdisjoint(node.all_input_nodes) and not any(abs(v) > bound for v in numbers):
            continue
        found.add(node)
        if node.target in _CARRIERS:
            large.add(node)
    return found


def _leading_to(nodes: set[fx.Node], ends: tuple[Any, ...]) -> set[fx.Node]:
    """Those of ``nodes`` from which a path within them leads to an operator of ``ends``."""
    found: set[fx.Node] = set()
    pending = [node for node in nodes if node.target in ends]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += [source for source in node.all_input_nodes if source in nodes]
    return found


def _is_causal(node: fx.Node) -> bool:
    given = node.args[_CAUSAL] if len(node.args) > _CAUSAL else node.kwargs.get("is_causal", False)
    return bool(given)


def _large_constants(gm: fx.GraphModule, bound: float) -> set[fx.Node]:
    """The nodes that do not depend on the inputs and have a value beyond ``bound``."""
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in gm.graph.nodes:
            if node.op == "get_attr":
                values[node] = graph.attribute(gm, str(node.target))
            elif node.op == "call_function" and all(n in values for n in node.all_input_nodes):
                args = fx.node.map_arg(node.args, values.__getitem__)
                kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
                values[node] = node.target(*args, **kwargs)
    return {
        node
        for node, value in values.items()
        if isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and value.numel()
        and bool((value.abs() > bound).any())
    }


def _numbers(node: fx.Node) -> list[float]:
    """The numbers that an operator computes with: not the sizes, axes and ends among its arguments.

    A mask is as often written as ``-10000`` as it is as ``-1e4``.
    """
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    found = []
    for index, argument in enumerate(node.target._schema.arguments):
        given = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
        kind = argument.type
        kind = kind.getElementType() if isinstance(kind, torch.OptionalType) else kind
        if isinstance(given, float) or (
            type(given) is int and isinstance(kind, (torch.NumberType, torch.TensorType))
        ):
            found.append(float(given))
    return found
