"""Which node of a program each node of a converted copy stands for.

Quantizers rename, fuse and insert nodes. What a node is computed from stays: two nodes are the same
where their operands are, as long as nodes of equal operands are taken in order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN

_PASSES_ON = ("quantize_", "dequantize")
_AUXILIARY = "choose_qparams"


def match(program: fx.GraphModule, converted: fx.GraphModule) -> dict[fx.Node, fx.Node]:
    """Nodes of ``converted`` -> the nodes of ``program`` whose value they hold, rounded or not.

    A node that computes a layer with its activation stands for the activation. Quantize and
    dequantize nodes stand for what they pass on; nodes without a counterpart are left out.
    """
    same: dict[fx.Node, fx.Node] = {}
    waiting = _by_operands(program)
    inputs = iter([node for node in program.graph.nodes if node.op == "placeholder"])
    for node in converted.graph.nodes:
        if node.op == "placeholder":
            same[node] = next(inputs)
        elif node.op in ("get_attr", "output"):
            continue
        elif _name(converted, node).startswith(_PASSES_ON):
            source = node.args[0]
            if isinstance(source, fx.Node) and source in same:
                same[node] = same[source]
        elif not _name(converted, node).startswith(_AUXILIARY):
            found = _take(node, [same[a] for a in node.all_input_nodes if a in same], waiting)
            if found is not None:
                same[node] = _fused(converted, node, found)
    return same


def _by_operands(program: fx.GraphModule) -> dict[tuple[fx.Node, ...], list[fx.Node]]:
    constant: set[fx.Node] = set()
    found: dict[tuple[fx.Node, ...], list[fx.Node]] = {}
    for node in program.graph.nodes:
        if node.op == "get_attr":
            constant.add(node)
        elif node.op == "call_function":
            operands = tuple(dict.fromkeys(n for n in node.all_input_nodes if n not in constant))
            if operands:
                found.setdefault(operands, []).append(node)
            else:
                constant.add(node)
    return found


def _take(
    node: fx.Node, operands: list[fx.Node], waiting: dict[tuple[fx.Node, ...], list[fx.Node]]
) -> fx.Node | None:
    """The first node of these operands that nothing stands for yet, of the same operator if the
    copy still has ATen operators."""
    candidates = waiting.get(tuple(dict.fromkeys(operands)), [])
    if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten":
        candidates = [found for found in candidates if _operator(found) == _operator(node)]
    if not candidates:
        return None
    taken = candidates[0]
    waiting[tuple(dict.fromkeys(operands))].remove(taken)
    return taken


def _operator(node: fx.Node) -> Any:
    """What an ATen node calls; a view may have been made a reshape, which gives the same."""
    return ATEN.view.default if node.target == ATEN.reshape.default else node.target


def _fused(converted: fx.GraphModule, node: fx.Node, found: fx.Node) -> fx.Node:
    """``found``, or the clamp behind it where ``node`` computes both."""
    if "relu" not in _name(converted, node).lower() or graph.is_clamp(found):
        return found
    return graph.fused_activation(found) or found


def _name(gm: fx.GraphModule, node: fx.Node) -> str:
    """What a node calls: a module's class, a method, or a function without its namespace."""
    if node.op == "call_module":
        return type(gm.get_submodule(str(node.target))).__name__
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.partition("::")[2]
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))
