"""The prepared program as a tree of ``nn.Module`` objects, which FX graph-mode quantization needs.

FX tracing fails on many models; the exported program has already solved that. Nodes and
submodules are named after the nodes they were made from, so ranges that were calibrated on the
program apply to the rebuilt module too. Operators without an entry stay ATen calls; FX leaves them
in float.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN

Build = Callable[[fx.GraphModule, fx.Node], nn.Module]


def to_modules(gm: fx.GraphModule) -> fx.GraphModule:
    """Rebuild an ATen graph module; a clamp that runtimes fuse into its layer becomes ``nn.ReLU``.

    The caller has to see to it that a fused ReLU6 still clamps: its int8 range ends where the
    clamp does.
    """
    root, rebuilt = nn.Module(), fx.Graph()
    fused = {layer.activation for layer in graph.layers(gm)} - {None}
    nodes: dict[fx.Node, Any] = {}

    def load(argument: fx.Node) -> Any:
        if argument.op == "get_attr" and argument not in nodes:
            name = f"constant_{str(argument.target).replace('.', '_')}"
            root.register_buffer(name, graph.attribute(gm, str(argument.target)))
            nodes[argument] = rebuilt.get_attr(name)
        return nodes[argument]

    for node in gm.graph.nodes:
        if node.op == "placeholder":
            nodes[node] = rebuilt.placeholder(node.name)
        elif node.op == "output":
            result = fx.node.map_arg(node.args[0], load)
            single = isinstance(result, (tuple, list)) and len(result) == 1
            rebuilt.output(result[0] if single else result)
        elif node.op == "call_function":
            module = nn.ReLU() if node in fused else _module(gm, node)
            if module is not None:
                root.add_module(node.name, module)
                nodes[node] = rebuilt.create_node(
                    "call_module", node.name, (load(node.args[0]),), {}, node.name
                )
            else:
                nodes[node] = rebuilt.create_node(
                    "call_function",
                    _FUNCTIONS.get(node.target, node.target),
                    fx.node.map_arg(node.args, load),
                    fx.node.map_arg(node.kwargs, load),
                    node.name,
                )
    module = fx.GraphModule(root, rebuilt)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


def _module(gm: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    build = _MODULES.get(node.target)
    if build is None:
        return None
    if node.target in _LAYERS and graph.constant(gm, node.args[1]) is None:
        return None
    return build(gm, node)


def _args(node: fx.Node, *defaults: Any) -> tuple[Any, ...]:
    """Arguments after the first, with the operator's defaults for those left out."""
    given = node.args[1:]
    return (*given, *defaults[len(given) :])


def _conv2d(gm: fx.GraphModule, node: fx.Node) -> nn.Module:
    weight_node, bias_node, stride, padding, dilation, groups = _args(
        node, None, None, [1, 1], [0, 0], [1, 1], 1
    )
    weight, bias = graph.constant(gm, weight_node), graph.constant(gm, bias_node)
    assert weight is not None
    conv = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        tuple(weight.shape[2:]),  # type: ignore[arg-type]
        tuple(stride),
        tuple(padding),
        tuple(dilation),
        groups,
        bias=bias is not None,
    )
    return _with_weights(conv, weight, bias)


def _linear(gm: fx.GraphModule, node: fx.Node) -> nn.Module:
    weight_node, bias_node = _args(node, None, None)
    weight, bias = graph.constant(gm, weight_node), graph.constant(gm, bias_node)
    assert weight is not None
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    return _with_weights(linear, weight, bias)


def _with_weights(
    module: nn.Conv2d | nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None
) -> nn.Module:
    module.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return module


def _plain(module: Callable[..., nn.Module], *defaults: Any) -> Build:
    return lambda gm, node: module(*_args(node, *defaults))


_LAYERS = (ATEN.conv2d.default, ATEN.linear.default)

# Neither hardtanh nor ReLU6: where no layer takes them in, PyTorch's quantized kernel for qnnpack
# mixes up the channels of channels_last tensors (torch.clamp on quantized tensors as well).
_MODULES: dict[Any, Build] = {
    ATEN.conv2d.default: _conv2d,
    ATEN.linear.default: _linear,
    ATEN.relu.default: _plain(nn.ReLU),
    ATEN.silu.default: _plain(nn.SiLU),
    ATEN.sigmoid.default: _plain(nn.Sigmoid),
    ATEN.hardswish.default: _plain(nn.Hardswish),
    ATEN.hardsigmoid.default: _plain(nn.Hardsigmoid),
    ATEN.adaptive_avg_pool2d.default: _plain(nn.AdaptiveAvgPool2d),
    ATEN.max_pool2d.default: _plain(nn.MaxPool2d),
}

_FUNCTIONS: dict[Any, Any] = {
    ATEN.add.Tensor: operator.add,
    ATEN.mul.Tensor: operator.mul,
    ATEN.sub.Tensor: operator.sub,
    ATEN.cat.default: torch.cat,
    ATEN.view.default: torch.reshape,
    ATEN.reshape.default: torch.reshape,
    ATEN.flatten.using_ints: torch.flatten,
    ATEN.pad.default: F.pad,
    ATEN.mean.dim: torch.mean,
    ATEN.matmul.default: torch.matmul,
    ATEN.permute.default: torch.permute,
    ATEN.transpose.int: torch.transpose,
}
