"""Constant folding: what does not depend on the inputs is computed once, here.

Masks, position biases and tables of indices are computed in ``forward`` by many models, and weights
that are normalised or standardised are, too: runtimes would compute all of it again in every run,
converters fail on the operators that it is made of, and a weight that is computed is none that a
runtime could hold in INT8.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN

#: Elements of a result that is folded though it is larger than all that it is made from.
_SMALL = 2**20

#: Operators that take the shape, dtype and strides of their first operand, not its values.
_LIKE = (
    ATEN.new_zeros.default,
    ATEN.new_ones.default,
    ATEN.new_full.default,
    ATEN.zeros_like.default,
    ATEN.ones_like.default,
    ATEN.full_like.default,
    ATEN.fill.Scalar,
    ATEN.fill.Tensor,
)
#: Their results have no values of their own.
_EMPTY = (
    ATEN.empty.memory_format,
    ATEN.empty_like.default,
    ATEN.empty_permuted.default,
    ATEN.empty_strided.default,
    ATEN.new_empty.default,
    ATEN.new_empty_strided.default,
)


def fold_constants(gm: fx.GraphModule) -> int:
    """What is computed from weights and numbers alone becomes a constant.

    A result of more than a million elements, which is more than it is made from, is still computed
    at run time: the file would hold it. So is what a model returns as it is.
    """
    made_from: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in gm.graph.nodes:
        if node.op == "get_attr" and graph.constant(gm, node) is not None:
            made_from[node] = frozenset((node,))
        elif _is_pure(node) and all(source in made_from for source in _read(node)):
            made_from[node] = frozenset().union(*(made_from[source] for source in _read(node)))
    folded = [node for node in made_from if node.op == "call_function"]
    for node in reversed(folded):
        if not _leaves(node, made_from):
            continue
        if any(user.op == "output" for user in node.users) or not _fits(node, made_from[node]):
            del made_from[node]
    values: dict[fx.Node, Any] = {}
    held: dict[bytes, fx.Node] = {}
    replaced = 0
    for node in folded:
        if node not in made_from:
            continue
        values[node] = _value(gm, node, values)
        if _leaves(node, made_from):
            # Every block of a transformer may make the same mask.
            key = _digest(values[node])
            if key not in held:
                held[key] = graph.add_constant(gm, f"{node.name}_folded", values[node], node)
                held[key].meta["val"] = node.meta["val"]
            node.replace_all_uses_with(held[key], lambda user: user not in made_from)
            replaced += 1
    return replaced


def _is_pure(node: fx.Node) -> bool:
    """Whether it gives the same in every run, if its operands are the same."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return True
    target = node.target
    return (
        isinstance(target, torch._ops.OpOverload)
        and target not in _EMPTY
        and torch.Tag.nondeterministic_seeded not in target.tags
        and not target._schema.is_mutable
    )


def _read(node: fx.Node) -> list[fx.Node]:
    """The operands whose values are read."""
    if node.target not in _LIKE:
        return node.all_input_nodes
    found: list[fx.Node] = []
    fx.node.map_arg((node.args[1:], dict(node.kwargs)), found.append)
    return found


def _leaves(node: fx.Node, constant: dict[fx.Node, frozenset[fx.Node]]) -> bool:
    """Whether what is not constant takes it in."""
    return any(user not in constant for user in node.users)


def _fits(node: fx.Node, sources: frozenset[fx.Node]) -> bool:
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        # Several results: each is known by itself.
        return False
    held: int = sum(source.meta["val"].numel() for source in sources)
    return value.numel() <= max(_SMALL, held)


def _digest(value: torch.Tensor) -> bytes:
    """The same for the same values in the same order of memory."""
    digest = hashlib.sha256(str((value.dtype, value.shape, value.stride())).encode())
    digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


def _value(gm: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    read = _read(node)

    def of(operand: fx.Node) -> Any:
        if operand in values:
            return values[operand]
        found = graph.constant(gm, operand)
        if found is None and operand in read:
            # A constant that is not folded itself, as it is too large or returned.
            values[operand] = found = _value(gm, operand, values)
        if found is None:
            # The first operand of one of `_LIKE`.
            like = operand.meta["val"]
            found = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype)
        return found

    operation: Callable[..., Any] = node.target  # type: ignore[assignment]
    with torch.no_grad():
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), of)
        return operation(*args, **kwargs)
