"""Simulated INT8: which tensors a runtime rounds, to what grid, and the program run that way.

The simulation serves repair (bias correction, rounding): it is close to all runtimes and exactly
none of them. Accuracy is only ever judged on the artifacts themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.calibrate import Range

Values = list[Any]


@dataclass(frozen=True)
class Grid:
    """An int8 affine grid: real = (integer - zero_point) * scale, integer in [-128, 127]."""

    scale: float
    zero_point: int

    def round(self, value: torch.Tensor) -> torch.Tensor:
        """``value`` as it comes back from int8; any float shape, same shape out."""
        integer = (value / self.scale).round_().add_(self.zero_point).clamp_(-128, 127)
        return integer.sub_(self.zero_point).mul_(self.scale)


def activation_grid(low: float, high: float) -> Grid:
    """The affine int8 grid of a range that contains zero."""
    scale = max((high - low) / 255, 2**-23)
    zero_point = round(-low / scale) - 128
    return Grid(scale, max(-128, min(127, zero_point)))


def weight_scales(weight: torch.Tensor, channel_axis: int) -> torch.Tensor:
    """Symmetric per-channel scales, max|w| / 127, shaped to broadcast over ``weight``."""
    axes = [axis for axis in range(weight.dim()) if axis != channel_axis]
    return weight.abs().amax(axes, keepdim=True).clamp_min(1e-9) / 127


def round_weight(weight: torch.Tensor, channel_axis: int) -> torch.Tensor:
    """The weight on its per-channel int8 grid; a weight already on it stays as it is."""
    scales = weight_scales(weight, channel_axis)
    return (weight / scales).round().clamp(-127, 127) * scales


def rounded_nodes(gm: fx.GraphModule) -> set[str]:
    """Names of the tensors that an int8 runtime rounds.

    Inputs, and the output of everything that computes; a layer with a fused activation is rounded
    after it, and operators that only move values share the scale of what they move.
    """
    names = set()
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        if node.op == "placeholder":
            names.add(node.name)
        elif node.op == "call_function" and node.target not in graph.SAME_VALUES:
            fusable = node.target in (*graph.CONVOLUTIONS, *graph.LINEARS, *graph.ADDITIONS)
            if not (fusable and graph.fused_activation(node) is not None):
                names.add(node.name)
    return names


def activation_grids(gm: fx.GraphModule, ranges: Mapping[str, Range], kind: str) -> dict[str, Grid]:
    """The grid of every rounded tensor by node name; ``kind`` as in :meth:`Range.of`."""
    return {
        name: activation_grid(*ranges[name].of(kind))
        for name in rounded_nodes(gm)
        if name in ranges
    }


def run_samples(
    gm: fx.GraphModule,
    samples: Sequence[tuple[torch.Tensor, ...]],
    on_node: Callable[[fx.Node, Values], Values],
    before_node: Callable[[fx.Node, Callable[[fx.Node], Values]], None] = lambda node, get: None,
) -> list[Values]:
    """Run node after node, each over all samples, so that a node can be changed before it runs.

    Args:
        gm: the program; its constants may be changed by the callbacks while it runs.
        samples: input tuples.
        on_node: gets a node and its values (one per sample), returns the values to go on with.
        before_node: gets a node and a function that gives the values of one of its arguments.

    Returns:
        For each sample, the flat list of outputs. Values are dropped after their last use.
    """
    placeholders = iter(range(len(samples[0])))
    values: dict[fx.Node, Values] = {}
    last_use = _last_uses(gm)
    outputs: list[Values] = []
    with torch.inference_mode():
        for node in gm.graph.nodes:
            if node.op == "placeholder":
                index = next(placeholders)
                values[node] = on_node(node, [sample[index].clone() for sample in samples])
            elif node.op == "get_attr":
                # Read late: a callback may have replaced the constant by then.
                pass
            elif node.op == "output":
                outputs = _outputs(gm, node, values, len(samples))
            else:
                before_node(node, lambda argument: values[argument])
                computed = [_call(gm, node, values, i) for i in range(len(samples))]
                values[node] = on_node(node, computed)
            for dead in last_use.get(node, ()):
                values.pop(dead, None)
    return outputs


def _last_uses(gm: fx.GraphModule) -> dict[fx.Node, list[fx.Node]]:
    last: dict[fx.Node, fx.Node] = {}
    for node in gm.graph.nodes:
        for argument in node.all_input_nodes:
            last[argument] = node
    uses: dict[fx.Node, list[fx.Node]] = {}
    for argument, user in last.items():
        uses.setdefault(user, []).append(argument)
    return uses


def _load(gm: fx.GraphModule, values: Mapping[fx.Node, Values], i: int) -> Callable[[fx.Node], Any]:
    def load(argument: fx.Node) -> Any:
        if argument.op == "get_attr":
            return graph.attribute(gm, str(argument.target))
        return values[argument][i]

    return load


def _call(gm: fx.GraphModule, node: fx.Node, values: Mapping[fx.Node, Values], i: int) -> Any:
    load = _load(gm, values, i)
    args = fx.node.map_arg(node.args, load)
    kwargs = fx.node.map_arg(node.kwargs, load)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _outputs(
    gm: fx.GraphModule, node: fx.Node, values: Mapping[fx.Node, Values], count: int
) -> list[Values]:
    flat, _ = torch.utils._pytree.tree_flatten(node.args[0])
    nodes = [leaf for leaf in flat if isinstance(leaf, fx.Node)]
    return [[_load(gm, values, i)(leaf) for leaf in nodes] for i in range(count)]
