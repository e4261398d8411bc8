"""The prepared program as a tree of ``nn.Module`` objects, which FX graph-mode quantization needs.

FX tracing fails on many models; the exported program has already solved that. Nodes and
submodules are named after the nodes they were made from, so ranges that were calibrated on the
program apply to the rebuilt module too. Operators without an entry stay ATen calls; FX leaves them
in float. What is computed from constants alone is computed here, as FX tracing would.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from edgekit.errors import ExportFailed
from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN

Build = Callable[[fx.GraphModule, fx.Node], nn.Module]


def to_modules(gm: fx.GraphModule, float_nodes: Collection[str] = ()) -> fx.GraphModule:
    """Rebuild an ATen graph module; a clamp that runtimes fuse into its layer becomes ``nn.ReLU``.

    The caller has to see to it that a fused ReLU6 still clamps: its int8 range ends where the
    clamp does. ``float_nodes`` stay ATen calls, whatever they are, which FX leaves in float.

    Raises:
        ExportFailed: an operator is called with an argument that its counterpart does not take.
    """
    root, rebuilt = nn.Module(), fx.Graph()
    fused = {x.activation for x in graph.layers(gm) if x.node.target in _LAYERS} - {None}
    constants = _constants(gm)
    nodes: dict[fx.Node, Any] = {}

    def load(argument: fx.Node) -> Any:
        if argument in constants and argument not in nodes:
            name = f"constant_{argument.name}"
            root.register_buffer(name, constants[argument])
            nodes[argument] = rebuilt.get_attr(name)
        return nodes[argument]

    for node in gm.graph.nodes:
        if node.op == "placeholder":
            nodes[node] = rebuilt.placeholder(node.name)
        elif node.op == "output":
            result = fx.node.map_arg(node.args[0], load)
            single = isinstance(result, (tuple, list)) and len(result) == 1
            rebuilt.output(result[0] if single else result)
        elif node.name in float_nodes and node not in constants:
            nodes[node] = copied = rebuilt.node_copy(node, load)
            if node.target == ATEN.view.default:
                # Quantized layers give their channels last, of which there is not always a view.
                copied.target = ATEN.reshape.default
        elif node.op == "call_function" and node not in constants:
            module = nn.ReLU() if node in fused else _module(gm, node)
            if module is not None:
                root.add_module(node.name, module)
                nodes[node] = rebuilt.create_node(
                    "call_module", node.name, (load(node.args[0]),), {}, node.name
                )
            else:
                function, args = _function(node, constants)
                if function in _OPERATORS:
                    _refuse_keywords(node)
                nodes[node] = rebuilt.create_node(
                    "call_function",
                    function,
                    fx.node.map_arg(args, load),
                    fx.node.map_arg(node.kwargs, load),
                    node.name,
                )
    module = fx.GraphModule(root, rebuilt)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


def _constants(gm: fx.GraphModule) -> dict[fx.Node, Any]:
    """The values of all nodes that do not depend on the inputs."""
    values: dict[fx.Node, Any] = {}
    with torch.inference_mode(False), torch.no_grad():
        for node in gm.graph.nodes:
            if node.op == "get_attr":
                values[node] = graph.attribute(gm, str(node.target))
            elif node.op == "call_function" and all(n in values for n in node.all_input_nodes):
                args = fx.node.map_arg(node.args, values.__getitem__)
                kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
                values[node] = node.target(*args, **kwargs)
    return values


def _module(gm: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    build = _MODULES.get(node.target)
    if build is None:
        return None
    if node.target in _LAYERS and graph.constant(gm, node.args[1]) is None:
        return None
    _refuse_keywords(node)
    return build(gm, node)


def _function(node: fx.Node, constants: Collection[fx.Node]) -> tuple[Any, tuple[Any, ...]]:
    """What FX knows an operator by, and its arguments.

    FX traces a Python operator whose first operand is a constant as a method of that tensor, which
    it does not quantize: the constant of a sum or product goes second, a difference stays ATen's.
    """
    function = _FUNCTIONS.get(node.target, node.target)
    if function not in _OPERATORS or node.args[0] not in constants:
        return function, node.args
    if function is operator.sub:
        return node.target, node.args
    return function, (node.args[1], node.args[0])


def _refuse_keywords(node: fx.Node) -> None:
    """Modules and Python's operators would drop them, and compute something else."""
    if node.kwargs:
        raise ExportFailed(
            f"{node.target} at node {node.name!r} is called with {', '.join(node.kwargs)}, which "
            "its TorchScript counterpart does not take.",
            remedy="Write the operator out in forward(), or leave torchscript out of the runtimes.",
        )


def _args(node: fx.Node, *defaults: Any) -> tuple[Any, ...]:
    """Arguments after the first, with the operator's defaults for those left out."""
    given = node.args[1:]
    return (*given, *defaults[len(given) :])


def _conv(module: type[nn.Conv1d] | type[nn.Conv2d], axes: int) -> Build:
    def build(gm: fx.GraphModule, node: fx.Node) -> nn.Module:
        weight_node, bias_node, stride, padding, dilation, groups = _args(
            node, None, None, [1] * axes, [0] * axes, [1] * axes, 1
        )
        weight, bias = graph.constant(gm, weight_node), graph.constant(gm, bias_node)
        assert weight is not None
        conv = module(
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

    return build


def _linear(gm: fx.GraphModule, node: fx.Node) -> nn.Module:
    weight_node, bias_node = _args(node, None, None)
    weight, bias = graph.constant(gm, weight_node), graph.constant(gm, bias_node)
    assert weight is not None
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    return _with_weights(linear, weight, bias)


def _with_weights(
    module: nn.Conv1d | nn.Conv2d | nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None
) -> nn.Module:
    module.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return module


def _max_pool2d(gm: fx.GraphModule, node: fx.Node) -> nn.Module:
    kernel, stride, padding, dilation, ceil_mode = _args(node, None, None, 0, 1, False)
    # An empty stride stands for the kernel's size.
    return nn.MaxPool2d(kernel, stride or None, padding, dilation, ceil_mode=ceil_mode)


def _plain(module: Callable[..., nn.Module], *defaults: Any) -> Build:
    return lambda gm, node: module(*_args(node, *defaults))


_LAYERS = (ATEN.conv1d.default, ATEN.conv2d.default, ATEN.linear.default)

# Neither hardtanh nor ReLU6: where no layer takes them in, PyTorch's quantized kernel for qnnpack
# mixes up the channels of channels_last tensors (torch.clamp on quantized tensors as well).
_MODULES: dict[Any, Build] = {
    ATEN.conv1d.default: _conv(nn.Conv1d, 1),
    ATEN.conv2d.default: _conv(nn.Conv2d, 2),
    ATEN.linear.default: _linear,
    ATEN.relu.default: _plain(nn.ReLU),
    ATEN.silu.default: _plain(nn.SiLU),
    ATEN.sigmoid.default: _plain(nn.Sigmoid),
    ATEN.hardswish.default: _plain(nn.Hardswish),
    ATEN.hardsigmoid.default: _plain(nn.Hardsigmoid),
    ATEN.adaptive_avg_pool2d.default: _plain(nn.AdaptiveAvgPool2d),
    ATEN.max_pool2d.default: _max_pool2d,
}

_OPERATORS = (operator.add, operator.mul, operator.sub)

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
