"""Reading and editing the ATen graphs that ``torch.export`` gives: constants, layers, activations.

Everything in :mod:`edgekit.quantize` that looks at a program does it through these few functions,
so that there is one idea of what a layer is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

ATEN = torch.ops.aten

#: Convolutions with the number of axes that they move over.
_SPATIAL: dict[Any, int] = {
    ATEN.conv1d.default: 1,
    ATEN.conv2d.default: 2,
    ATEN.conv3d.default: 3,
    ATEN.conv_transpose2d.input: 2,
}
CONVOLUTIONS = tuple(_SPATIAL)
LINEARS = (ATEN.linear.default,)
#: Averages over whole feature maps, which are smaller than what they are of.
AVERAGES = (ATEN.mean.dim, ATEN.adaptive_avg_pool2d.default)
ADDITIONS = (ATEN.add.Tensor, ATEN.sub.Tensor)
#: Activations that runtimes fuse into the layer before them by clamping its output range.
CLAMPS = (ATEN.relu.default, ATEN.hardtanh.default, ATEN.relu6.default)
PADS = (ATEN.pad.default, ATEN.constant_pad_nd.default)
#: Operators whose output holds the very values of their input: they share its scale.
SAME_VALUES = (
    *PADS,
    ATEN.view.default,
    ATEN.reshape.default,
    ATEN.flatten.using_ints,
    ATEN.permute.default,
    ATEN.transpose.int,
    ATEN.squeeze.dim,
    ATEN.squeeze.dims,
    ATEN.unsqueeze.default,
    ATEN.slice.Tensor,
    ATEN.select.int,
    ATEN.expand.default,
    ATEN.clone.default,
    ATEN.contiguous.default,
    ATEN.max_pool2d.default,
    ATEN.upsample_nearest2d.vec,
)


@dataclass(frozen=True)
class Layer:
    """A convolution or matrix product with constant weights.

    ``weight`` has the shape that PyTorch gives it; ``channel_axis`` is its output-channel axis.
    ``activation`` is the clamp that is the only user of the layer's output, if there is one.
    """

    node: fx.Node
    weight: str
    bias: str | None
    channel_axis: int
    activation: fx.Node | None

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def output(self) -> fx.Node:
        """The node whose value the runtime quantizes: the fused activation, else the layer."""
        return self.activation or self.node


def constant(module: torch.nn.Module, node: Any) -> torch.Tensor | None:
    """The tensor that a ``get_attr`` node stands for; None for anything else."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    return attribute(module, str(node.target))


def attribute(module: torch.nn.Module, target: str) -> torch.Tensor:
    """A parameter or buffer by its dotted name, detached."""
    owner: Any = module
    for part in target.split("."):
        owner = getattr(owner, part)
    assert isinstance(owner, torch.Tensor)
    return owner.detach()


def set_attribute(module: torch.nn.Module, target: str, value: torch.Tensor) -> None:
    """Replace a parameter or buffer by its dotted name; the new one is a frozen parameter."""
    path, _, name = target.rpartition(".")
    owner = module.get_submodule(path)
    if name in owner._buffers:
        owner._buffers[name] = value.detach().clone()
    else:
        setattr(owner, name, torch.nn.Parameter(value.detach().clone(), requires_grad=False))


def add_constant(gm: fx.GraphModule, name: str, value: torch.Tensor, before: fx.Node) -> fx.Node:
    """Register a new buffer and return a ``get_attr`` node for it, placed before ``before``."""
    unique, serial = name, 1
    while hasattr(gm, unique):
        unique, serial = f"{name}_{serial}", serial + 1
    gm.register_buffer(unique, value.detach().clone())
    with gm.graph.inserting_before(before):
        return gm.graph.get_attr(unique)


def layers(gm: fx.GraphModule) -> Iterator[Layer]:
    """All layers with constant weights, in the order in which they run."""
    for node in gm.graph.nodes:
        if node.op != "call_function" or node.target not in (*CONVOLUTIONS, *LINEARS):
            continue
        weight = node.args[1]
        held = constant(gm, weight)
        if held is None or held.dim() < 2:
            # A linear layer of one vector gives one number: a sum, without channels.
            continue
        bias = node.args[2] if len(node.args) > 2 else None
        assert isinstance(weight, fx.Node)
        yield Layer(
            node=node,
            weight=str(weight.target),
            bias=str(bias.target) if isinstance(bias, fx.Node) and bias.op == "get_attr" else None,
            channel_axis=1 if node.target == ATEN.conv_transpose2d.input else 0,
            activation=fused_activation(node),
        )


def channel_dim(node: fx.Node, value: torch.Tensor) -> int:
    """The axis of a layer's output that its channels lie on, with or without a batch dimension."""
    if node.target in LINEARS:
        return value.dim() - 1
    return value.dim() - 1 - _SPATIAL[node.target]


def fused_activation(node: fx.Node) -> fx.Node | None:
    """The clamp to [0, N] that follows ``node`` as its only user."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    return user if is_clamp(user) else None


def is_clamp(node: fx.Node) -> bool:
    """True for ReLU and for clamps from 0 upwards (ReLU6)."""
    if node.op != "call_function" or node.target not in CLAMPS:
        return False
    if node.target == ATEN.hardtanh.default:
        low = node.args[1] if len(node.args) > 1 else -1.0
        return bool(low == 0)
    return True


def gives_integers(node: fx.Node) -> bool:
    """True for operators whose result is a tensor of integers or truth values."""
    value = node.meta.get("val")
    integers = isinstance(value, torch.Tensor) and not value.is_floating_point()
    return integers and node.op == "call_function"


def last_uses(gm: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    """By node, the arguments of it that no later node takes."""
    last: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        for argument in node.all_input_nodes:
            last[argument] = node
    uses: dict[fx.Node, list[fx.Node]] = {}
    for argument, user in last.items():
        uses.setdefault(user, []).append(argument)
    return uses


def set_argument(node: fx.Node, index: int, value: Any, defaults: tuple[Any, ...]) -> None:
    """Set a positional argument, filling the ones that were left out with their defaults."""
    args = list(node.args)
    while len(args) <= index:
        args.append(defaults[len(args)])
    args[index] = value
    node.args = tuple(args)
