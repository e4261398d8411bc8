"""What the rewrites share: new nodes with shapes and origins, and constants that nobody else uses.

A rewrite never writes into a tensor that the graph already had, so the same weights can be used by
the program as it was, by a copy of its graph and by the rewritten program.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx

from edgekit.quantize import graph

_LAYERS = (*graph.CONVOLUTIONS, *graph.LINEARS)
#: Where a node came from: its module path and source line.
_ORIGIN = ("nn_module_stack", "stack_trace")


def insert(gm: fx.GraphModule, before: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    """A call placed before ``before``, with the origin of it and the shape that the call gives.

    Shapes are worked out on the meta device; exporting the program anew replaces them.
    """
    with gm.graph.inserting_before(before):
        node = gm.graph.call_function(target, args, kwargs)
    node.meta = {key: before.meta[key] for key in _ORIGIN if key in before.meta}
    node.meta["val"] = target(
        *fx.node.map_arg(args, lambda argument: _shape_of(gm, argument)), **kwargs
    )
    return node


def replace(node: fx.Node, new: fx.Node) -> None:
    """Let every user of ``node`` use ``new``, and remove ``node``."""
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def layer_weight(gm: fx.GraphModule, node: fx.Node) -> torch.Tensor | None:
    """The constant weight of a convolution or linear layer with a constant bias or none.

    None for everything else, so that a tensor says: this layer's constants can be replaced.
    """
    if node.op != "call_function" or node.target not in _LAYERS:
        return None
    bias = node.args[2] if len(node.args) > 2 else None
    if bias is not None and graph.constant(gm, bias) is None:
        return None
    return graph.constant(gm, node.args[1])


def layer_bias(gm: fx.GraphModule, node: fx.Node) -> torch.Tensor | None:
    """The bias of a layer that :func:`layer_weight` knows; None where it has none."""
    return graph.constant(gm, node.args[2]) if len(node.args) > 2 else None


def set_weight(gm: fx.GraphModule, node: fx.Node, value: torch.Tensor) -> None:
    """Give a layer another weight of the same shape, which nothing else uses."""
    _set_constant(gm, node, 1, "weight", value)


def set_bias(gm: fx.GraphModule, node: fx.Node, value: torch.Tensor) -> None:
    """Give a layer a bias, shape (output channels,), which nothing else uses."""
    _set_constant(gm, node, 2, "bias", value)


def scale_weight(gm: fx.GraphModule, node: fx.Node, factor: float) -> None:
    """Multiply the weight of a layer; its bias stays."""
    weight = layer_weight(gm, node)
    assert weight is not None
    set_weight(gm, node, weight.double() * factor)


def output_channels(weight: torch.Tensor, node: fx.Node) -> int:
    """How many channels a layer's output has."""
    if node.target != graph.ATEN.conv_transpose2d.input:
        return int(weight.shape[0])
    groups: Any = node.args[6] if len(node.args) > 6 else 1
    return int(weight.shape[1]) * int(groups)


def copy_graph(gm: fx.GraphModule) -> fx.GraphModule:
    """The same tensors under a graph of its own, which can be edited without touching ``gm``.

    Copying a graph copies its nodes, not the values in their ``meta``.
    """
    return fx.GraphModule(gm, copy.deepcopy(gm.graph))


def forget_strides(gm: fx.GraphModule) -> None:
    """Views become reshapes, which hold for values that lie otherwise in memory than before.

    Attention, for one, returns its result in the layout of its query.
    """
    for node in gm.graph.nodes:
        if node.target == graph.ATEN.view.default:
            node.target = graph.ATEN.reshape.default


def _set_constant(
    gm: fx.GraphModule, node: fx.Node, index: int, kind: str, value: torch.Tensor
) -> None:
    weight = layer_weight(gm, node)
    assert weight is not None
    value = value.to(weight.dtype)
    made = graph.add_constant(gm, f"{node.name}_{kind}", value, node)
    made.meta["val"] = _meta(value)
    graph.set_argument(node, index, made, (None, None, None))


def _shape_of(gm: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    value = node.meta["val"] if "val" in node.meta else graph.attribute(gm, str(node.target))
    assert isinstance(value, torch.Tensor)
    return _meta(value)


def _meta(value: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
