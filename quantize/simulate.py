"""Simulated INT8: which tensors a runtime rounds, to what grid, and the program run that way.

The simulation serves repair (bias correction, rounding): it is close to all runtimes and exactly
none of them. Accuracy is only ever judged on the artifacts themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.ranges import Range

Values = list[Any]
#: Gives the values of a node that has run, or of a constant, one per sample.
Get = Callable[[fx.Node], Values]


@dataclass(frozen=True)
class Grid:
    """An affine integer grid: real = (integer - zero_point) * scale, integer in [least, most]."""

    scale: float
    zero_point: int
    least: int = -128
    most: int = 127

    def round(self, value: torch.Tensor) -> torch.Tensor:
        """``value`` as it comes back from the grid; any float shape, same shape out."""
        integer = (value / self.scale).round_().add_(self.zero_point).clamp_(self.least, self.most)
        return integer.sub_(self.zero_point).mul_(self.scale)


def activation_grid(low: float, high: float, dtype: str = "int8") -> Grid:
    """The grid of a range that contains zero: affine in int8, symmetric in int16.

    TFLite's int16 kernels take no zero point, and 65,535 steps need none.
    """
    if dtype == "int16":
        return Grid(max(-low, high, 2**-31) / 32767, 0, -32767, 32767)
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


@contextmanager
def rounded_weights(gm: fx.GraphModule, float_nodes: Collection[str] = ()) -> Iterator[None]:
    """The program with the weights of its layers on their grids, but for layers that stay float."""
    originals = {
        layer.weight: (graph.attribute(gm, layer.weight).clone(), layer.channel_axis)
        for layer in graph.layers(gm)
        if layer.name not in float_nodes
    }
    for target, (weight, axis) in originals.items():
        graph.set_attribute(gm, target, round_weight(weight, axis))
    try:
        yield
    finally:
        for target, (weight, _) in originals.items():
            graph.set_attribute(gm, target, weight)


def rounded_nodes(gm: fx.GraphModule, float_nodes: Collection[str] = ()) -> set[str]:
    """Names of the tensors that an int8 runtime rounds.

    Inputs, and the output of everything that computes; a layer with a fused activation is rounded
    after it, and operators that only move values share the scale of what they move. What a float
    node gives is rounded where something quantized takes it.
    """
    names = set()
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        if node.name in float_nodes and not _feeds_quantized(node, float_nodes):
            continue
        if node.op == "placeholder":
            names.add(node.name)
        elif node.op == "call_function" and (
            node.target not in graph.SAME_VALUES
            # It adds values that the grid of its input does not hold, or has masks.
            or (node.name in float_nodes and node.args[0].name not in float_nodes)
        ):
            fusable = node.target in (*graph.CONVOLUTIONS, *graph.LINEARS, *graph.ADDITIONS)
            if not (fusable and graph.fused_activation(node) is not None):
                names.add(node.name)
    return names


def _feeds_quantized(node: fx.Node, float_nodes: Collection[str]) -> bool:
    """Whether a value, however it is moved, ends up in an operator that is not float."""
    for user in node.users:
        if user.op == "output" or user.name in float_nodes:
            continue
        if user.target not in graph.SAME_VALUES or _feeds_quantized(user, float_nodes):
            return True
    return False


def activation_grids(
    gm: fx.GraphModule,
    ranges: Mapping[str, Range],
    kind: str,
    *,
    dtype: str = "int8",
    float_nodes: Collection[str] = (),
) -> dict[str, Grid]:
    """The grid of every rounded tensor by node name; ``kind`` as in :meth:`Range.of`."""
    return {
        name: activation_grid(*ranges[name].of(kind), dtype)
        for name in rounded_nodes(gm, float_nodes)
        if name in ranges
    }


def simulate(
    gm: fx.GraphModule,
    samples: Sequence[tuple[torch.Tensor, ...]],
    grids: Mapping[str, Grid],
    float_nodes: Collection[str] = (),
) -> list[Values]:
    """The outputs of the quantized program: for each sample, the flat list of its outputs."""

    def rounded(node: fx.Node, values: Values) -> Values:
        grid = grids.get(node.name)
        return values if grid is None else [grid.round(value) for value in values]

    with rounded_weights(gm, float_nodes):
        return run_samples(gm, samples, rounded)


def simulate_dynamic(
    gm: fx.GraphModule, samples: Sequence[tuple[torch.Tensor, ...]], layers: Collection[str]
) -> list[Values]:
    """As :func:`simulate`, for linear layers whose inputs are rounded as they arrive.

    Each input has one affine grid between its own extremes, as ONNX Runtime and TorchScript make
    it. ExecuTorch and TFLite make one for each row, which is never coarser.
    """
    others = {layer.name for layer in graph.layers(gm)} - set(layers)
    made: dict[str, Values] = {}

    def before(node: fx.Node, get: Get) -> None:
        if node.name in layers:
            call: Any = node.target
            made[node.name] = [
                call(rounded_as_it_is(value), *rest) for value, *rest in arguments(node, get)
            ]

    def quantized(node: fx.Node, values: Values) -> Values:
        return made.pop(node.name, values)

    with rounded_weights(gm, others):
        return run_samples(gm, samples, quantized, before)


def arguments(node: fx.Node, get: Get) -> list[tuple[Any, ...]]:
    """The values of a node's positional arguments, one tuple per sample."""
    found: dict[fx.Node, Values] = {argument: get(argument) for argument in node.all_input_nodes}
    count = len(next(iter(found.values())))
    return [
        tuple(fx.node.map_arg(node.args, lambda n, i=i: found[n][i]))  # type: ignore[misc]
        for i in range(count)
    ]


def rounded_as_it_is(value: torch.Tensor) -> torch.Tensor:
    """On the affine grid between its own extremes and zero, as a value that arrives is rounded."""
    low, high = (float(end) for end in torch.aminmax(value))
    return activation_grid(min(low, 0.0), max(high, 0.0)).round(value)


def run_samples(
    gm: fx.GraphModule,
    samples: Sequence[tuple[torch.Tensor, ...]],
    on_node: Callable[[fx.Node, Values], Values],
    before_node: Callable[[fx.Node, Get], None] = lambda node, get: None,
) -> list[Values]:
    """Run node after node, each over all samples, so that a node can be changed before it runs.

    Args:
        gm: the program; its constants may be changed by the callbacks while it runs.
        samples: input tuples.
        on_node: gets a node and its values (one per sample), returns the values to go on with.
        before_node: gets a node, and what gives the values of its arguments.

    Returns:
        For each sample, the flat list of outputs. Values are dropped after their last use.
    """
    placeholders = iter(range(len(samples[0])))
    values: dict[fx.Node, Values] = {}
    last_use = graph.last_uses(gm)
    outputs: list[Values] = []

    def get(argument: fx.Node) -> Values:
        return [_load(gm, values, i)(argument) for i in range(len(samples))]

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
                before_node(node, get)
                computed = [_call(gm, node, values, i) for i in range(len(samples))]
                values[node] = on_node(node, computed)
            for dead in last_use.get(node, ()):
                values.pop(dead, None)
    return outputs


class PairedRun:
    """The float program and the quantized one side by side, node after node over all samples.

    The layer that is about to run can be looked at from both sides and changed: see
    :mod:`edgekit.quantize.rungs.adaptive_rounding`. Weights are on their grids already or float;
    activations are rounded here. Values are dropped after their last use.
    """

    def __init__(
        self,
        reference: fx.GraphModule,
        program: fx.GraphModule,
        samples: Sequence[tuple[torch.Tensor, ...]],
        grids: Mapping[str, Grid],
    ) -> None:
        self._reference, self._program = reference, program
        self._samples, self._grids = samples, grids
        self._float: dict[fx.Node, Values] = {}
        self._quantized: dict[fx.Node, Values] = {}
        self._last_use = graph.last_uses(reference)
        self._inputs = iter(range(len(samples[0])))
        self._computed: tuple[fx.Node, Values] | None = None

    def nodes(self) -> Iterator[fx.Node]:
        """The reference's nodes; each has to be given to :meth:`step` before the next."""
        yield from (node for node in self._reference.graph.nodes if node.op != "output")

    def quantized(self, node: Any) -> Values:
        """The quantized program's values of a node that has run, one per sample."""
        return self._quantized[node]

    def float_result(self, node: fx.Node) -> Values:
        """What the float program computes at a node that is about to run, one per sample."""
        if self._computed is None or self._computed[0] is not node:
            count = range(len(self._samples))
            with torch.no_grad():
                values = [_call(self._reference, node, self._float, i) for i in count]
            self._computed = (node, values)
        return self._computed[1]

    def step(self, node: fx.Node) -> None:
        """Run one node in both programs."""
        grid = self._grids.get(node.name)
        if node.op == "placeholder":
            index = next(self._inputs)
            self._float[node] = [sample[index] for sample in self._samples]
            self._quantized[node] = [sample[index].clone() for sample in self._samples]
        elif node.op == "get_attr":
            return
        else:
            self._float[node] = self.float_result(node)
            with torch.no_grad():
                self._quantized[node] = [
                    _call(self._program, node, self._quantized, i)
                    for i in range(len(self._samples))
                ]
        if grid is not None:
            self._quantized[node] = [grid.round(value) for value in self._quantized[node]]
        for dead in self._last_use.get(node, ()):
            self._float.pop(dead, None)
            self._quantized.pop(dead, None)


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
