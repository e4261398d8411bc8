"""A part of a program as a program of its own: what it takes from the rest becomes its inputs."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from edgekit.quantize import graph


def part(gm: fx.GraphModule, nodes: Collection[fx.Node]) -> fx.GraphModule:
    """The nodes of an ATen graph module as a module; weights are shared with the whole one.

    Inputs are called as the nodes whose values they stand for; outputs are what the rest of the
    program, or nothing, uses. Values that are no tensors, such as pairs, are taken in with the
    nodes that make them of tensors.
    """
    wanted = set(nodes)
    for node in reversed(gm.graph.nodes):
        if node in wanted:
            wanted |= {n for n in node.all_input_nodes if not _is_tensor(n) and n.op != "get_attr"}
    root, made = torch.nn.Module(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}

    def copy(source: fx.Node) -> fx.Node:
        if source not in copies and source.op == "get_attr":
            name = f"constant_{source.name}"
            root.register_buffer(name, graph.attribute(gm, str(source.target)))
            copies[source] = made.get_attr(name)
            copies[source].meta = dict(source.meta)
        return copies[source]

    inputs = {n for node in wanted for n in node.all_input_nodes} - wanted
    for node in gm.graph.nodes:
        if node in inputs and node.op != "get_attr":
            copies[node] = made.placeholder(node.name)
            copies[node].meta = {"val": node.meta["val"]}
    for node in gm.graph.nodes:
        if node in wanted:
            copies[node] = made.node_copy(node, copy)
            copies[node].meta = dict(node.meta)
    results = [
        node
        for node in gm.graph.nodes
        if node in wanted and _is_tensor(node) and not (node.users and node.users.keys() <= wanted)
    ]
    made.output(tuple(copies[node] for node in results))
    return fx.GraphModule(root, made).eval()


def example(gm: fx.GraphModule) -> tuple[torch.Tensor, ...]:
    """Zeros for the inputs of a part, of the shapes and dtypes that they have in the program."""
    return tuple(
        torch.zeros(tuple(node.meta["val"].shape), dtype=node.meta["val"].dtype)
        for node in gm.graph.nodes
        if node.op == "placeholder"
    )


def kind_of_call(node: fx.Node) -> tuple[Any, ...]:
    """What calls have in common that a converter treats alike.

    The operator, its plain arguments, and for its tensors whether they are constant, their rank and
    their dtype. For a layer, depthwise or not stands for the plain arguments.
    """

    def describe(value: Any) -> Any:
        if not isinstance(value, fx.Node):
            return repr(value)
        tensors = [
            (v.dim(), str(v.dtype))
            for v in pytree.tree_leaves(value.meta.get("val"))
            if isinstance(v, torch.Tensor)
        ]
        return (value.op == "get_attr", *tensors)

    if node.target in (*graph.CONVOLUTIONS, *graph.LINEARS):
        weight: Any = node.args[1]
        value = weight.meta.get("val")
        return (str(node.target), describe(weight), value is not None and value.shape[1] == 1)
    leaves, spec = pytree.tree_flatten((node.args, dict(node.kwargs)))
    return (str(node.target), str(spec), *(describe(leaf) for leaf in leaves))


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)
