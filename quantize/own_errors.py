"""How much error each layer adds by itself, with float inputs, and what it is made of.

By the simulation of :mod:`edgekit.quantize.simulate`: the layer's weights on their grids as the
rungs left them, its bias the float one, its output on the grid of its range; in dynamic INT8 the
inputs of linear layers are rounded as they arrive. Where the rungs
corrected biases, the constant error per channel is taken off first: a correction also makes up for
the layers before, so it cannot be had from the corrected bias itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx

from edgekit import quality
from edgekit.quantize import graph, origins
from edgekit.quantize.float_nodes import linear_layers
from edgekit.quantize.graph import ATEN
from edgekit.quantize.layer_errors import Facts, Node
from edgekit.quantize.ranges import Range
from edgekit.quantize.simulate import (
    Get,
    Grid,
    Values,
    activation_grids,
    arguments,
    round_weight,
    rounded_as_it_is,
    rounded_nodes,
    run_samples,
)
from edgekit.types import Recipe

#: Values per tensor that quantiles are taken from, evenly spaced.
_QUANTILE_VALUES = 1 << 16
#: The share of the values at each end that does not count as the bulk of them.
_TAIL = 0.001
#: What a ratio is when its denominator is nothing.
_MAX_RATIO = 1e6


def own_errors(
    reference: fx.GraphModule,
    repaired: fx.GraphModule,
    ranges: Mapping[str, Range],
    recipe: Recipe,
    samples: Sequence[tuple[torch.Tensor, ...]],
) -> tuple[Node, ...]:
    """Every node whose value a runtime may round, in program order, with its facts.

    Args:
        reference: the float program that was calibrated.
        repaired: the same graph with the weights and biases that are exported.
        ranges: the calibrated ranges by node name; empty for recipes without.
        recipe: as the artifact was made by.
        samples: model inputs, each with batch dimension.
    """
    simulation = _Simulation(reference, repaired, ranges, recipe)
    run_samples(reference, samples, simulation.observe, simulation.before)
    return tuple(
        _describe(node, simulation) for node in reference.graph.nodes if node in simulation.wanted
    )


class _Simulation:
    """Watches the float program run and does each layer once more, rounded."""

    def __init__(
        self,
        reference: fx.GraphModule,
        repaired: fx.GraphModule,
        ranges: Mapping[str, Range],
        recipe: Recipe,
    ) -> None:
        self._ranges = ranges
        self.grids: dict[str, Grid] = {}
        if recipe.scheme == "static":
            self.grids = activation_grids(
                reference,
                ranges,
                recipe.ranges,
                dtype=recipe.activations,
                float_nodes=recipe.float_nodes,
            )
        self._dynamic = recipe.scheme == "dynamic"
        chosen = {layer.name for layer in graph.layers(reference)} - set(recipe.float_nodes)
        if self._dynamic:
            chosen = set(linear_layers(reference, recipe.float_nodes))
        names = rounded_nodes(reference)
        self.wanted = {node for node in reference.graph.nodes if node.name in names}
        mended = {layer.name: layer for layer in graph.layers(repaired)}
        self._layers: dict[fx.Node, graph.Layer] = {}
        self.by_output: dict[fx.Node, graph.Layer] = {}
        self._weights: dict[str, torch.Tensor] = {}
        self._corrected: set[str] = set()
        for layer in graph.layers(reference):
            self.by_output[layer.output] = layer
            if layer.name not in chosen or layer.name not in mended:
                continue
            self._layers[layer.node] = layer
            twin = mended[layer.name]
            weight = graph.attribute(repaired, twin.weight)
            self._weights[layer.name] = round_weight(weight, layer.channel_axis)
            if layer.bias is not None and twin.bias is not None:
                before = graph.attribute(reference, layer.bias)
                if not torch.equal(before, graph.attribute(repaired, twin.bias)):
                    self._corrected.add(layer.name)
        self._reference = reference
        # What the layers give with rounded weights; and with rounded inputs as well, where the
        # runtime rounds them as they arrive.
        self._rounded: dict[fx.Node, Values] = {}
        self._both_rounded: dict[fx.Node, Values] = {}
        self.facts: dict[fx.Node, Facts] = {}

    def before(self, node: fx.Node, get: Get) -> None:
        """Compute a layer on float inputs with rounded weights, its activation included."""
        layer = self._layers.get(node)
        if layer is None:
            return
        given = arguments(node, get)
        self._rounded[layer.output] = self._run(layer, given)
        if self._dynamic:
            rounded = [(rounded_as_it_is(value), *rest) for value, *rest in given]
            self._both_rounded[layer.output] = self._run(layer, rounded)

    def _run(self, layer: graph.Layer, given: Sequence[tuple[Any, ...]]) -> Values:
        call: Any = layer.node.target
        weight = self._weights[layer.name]
        found = [call(value, weight, *rest, **layer.node.kwargs) for value, _, *rest in given]
        if layer.activation is not None:
            clamp: Any = layer.activation.target
            found = [clamp(value, *layer.activation.args[1:]) for value in found]
        return found

    def observe(self, node: fx.Node, values: Values) -> Values:
        """Compare, where a runtime rounds; the float values go on."""
        given = self._rounded.pop(node, None)
        grid = self.grids.get(node.name)
        if node in self.wanted and (given is not None or grid is not None):
            self.facts[node] = self._measure(node, values, given, grid)
        return values

    def _measure(
        self, node: fx.Node, values: Values, given: Values | None, grid: Grid | None
    ) -> Facts:
        layer = self.by_output.get(node)
        wanted = torch.stack(values)
        signal = _power(wanted)
        result, weight_noise, shift = wanted, None, None
        if given is not None and layer is not None:
            result = torch.stack(given)
            result, weight_noise, shift = _without_shift(
                wanted,
                result,
                1 + graph.channel_dim(layer.node, values[0]),
                remove=layer.name in self._corrected,
            )
        if grid is None:
            assert layer is not None
            noise = weight_noise or 0.0
            if node in self._both_rounded:
                _, noise, _ = _without_shift(
                    wanted,
                    torch.stack(self._both_rounded.pop(node)),
                    1 + graph.channel_dim(layer.node, values[0]),
                    remove=layer.name in self._corrected,
                )
            return Facts(
                own_sqnr_db=decibels(signal, noise),
                weight_share=min((weight_noise or 0.0) / noise, 1.0) if noise else 1.0,
                weight_spread=self._weight_spread(layer),
                shift_share=shift,
            )
        rounded = grid.round(result.clone())
        noise = _power(rounded - wanted)
        low = (grid.least - grid.zero_point) * grid.scale
        high = (grid.most - grid.zero_point) * grid.scale
        beyond = result - result.clamp(low, high)
        added = _power(rounded - result)
        seen = self._ranges[node.name].of("minmax")
        margin = grid.scale / 2
        return Facts(
            own_sqnr_db=decibels(signal, noise),
            weight_share=None
            if weight_noise is None
            else min(weight_noise / noise, 1.0)
            if noise
            else 0.0,
            clip_share=min(_power(beyond) / added, 1.0) if added else 0.0,
            clipped=float((beyond.abs() > margin).float().mean()),
            unseen=float(
                ((wanted < seen[0] - margin) | (wanted > seen[1] + margin)).double().mean()
            ),
            stretch=_stretch(wanted, low, high),
            channel_spread=_channel_spread(wanted, self._channel_axis(node, values[0])),
            weight_spread=None if layer is None else self._weight_spread(layer),
            part_spread=self._part_spread(node),
            steps=(signal / max(wanted.numel(), 1)) ** 0.5 / grid.scale,
            shift_share=shift,
        )

    def _channel_axis(self, node: fx.Node, value: torch.Tensor) -> int | None:
        """In the stack of all samples; None where there are no channels to speak of."""
        layer = self.by_output.get(node)
        if layer is not None:
            return 1 + graph.channel_dim(layer.node, value)
        axis = channel_axis(value.dim())
        return None if axis is None else 1 + axis

    def _weight_spread(self, layer: graph.Layer) -> float | None:
        weight = self._weights.get(layer.name)
        return None if weight is None else _channel_spread(weight, layer.channel_axis)

    def _part_spread(self, node: fx.Node) -> float | None:
        if node.target != ATEN.cat.default:
            return None
        widths = [
            high - low
            for part in node.all_input_nodes
            if part.name in self._ranges
            for low, high in [self._ranges[part.name].of("minmax")]
        ]
        return _ratio(max(widths), min(widths)) if len(widths) > 1 else None


def channel_axis(dimensions: int) -> int | None:
    """Where a tensor's channels usually are: (N, C, H, W), (N, C) and (N, length, C)."""
    return {2: 1, 3: 2, 4: 1}.get(dimensions)


def decibels(signal: float, noise: float) -> float:
    """``10 log10(signal / noise)`` of two powers, finite (see :mod:`edgekit.quality`)."""
    if noise <= 0:
        return quality.SQNR_CAP_DB
    if not signal > 0 or not noise < float("inf"):
        return -quality.SQNR_CAP_DB
    found = 10 * float(torch.log10(torch.tensor(signal / noise, dtype=torch.float64)))
    return max(-quality.SQNR_CAP_DB, min(quality.SQNR_CAP_DB, found))


def _power(values: torch.Tensor) -> float:
    return float(values.square().sum(dtype=torch.float64))


def _without_shift(
    wanted: torch.Tensor, given: torch.Tensor, axis: int, *, remove: bool
) -> tuple[torch.Tensor, float, float]:
    """What rounded weights give, the power of its error, and its share that is one constant per
    channel; with ``remove`` the first two without that constant."""
    error = given - wanted
    others = [i for i in range(error.dim()) if i != axis]
    mean = error.mean(others, keepdim=True)
    noise = _power(error)
    constant = _power(mean) * error.numel() / mean.numel()
    share = min(constant / noise, 1.0) if noise else 0.0
    if remove:
        return given - mean, max(noise - constant, 0.0), share
    return given, noise, share


def _stretch(values: torch.Tensor, low: float, high: float) -> float:
    flat = values.reshape(-1)
    flat = flat[:: max(1, flat.numel() // _QUANTILE_VALUES)]
    ends = torch.quantile(flat, torch.tensor([_TAIL, 1 - _TAIL], dtype=flat.dtype))
    bulk = max(float(ends[1]), 0.0) - min(float(ends[0]), 0.0)
    return max(1.0, _ratio(high - low, bulk))


def _channel_spread(values: torch.Tensor, axis: int | None) -> float:
    """The largest channel's magnitude over the median one's, dead channels left out."""
    if axis is None or values.shape[axis] < 2:
        return 1.0
    others = [i for i in range(values.dim()) if i != axis]
    sizes = values.abs().amax(others)
    alive = sizes[sizes > 0]
    return _ratio(float(alive.max()), float(alive.median())) if alive.numel() else 1.0


def _ratio(large: float, small: float) -> float:
    return min(large / small, _MAX_RATIO) if small > 0 else (_MAX_RATIO if large > 0 else 1.0)


def _describe(node: fx.Node, simulation: _Simulation) -> Node:
    layer = simulation.by_output.get(node)
    source = node if layer is None else layer.node
    op = "input" if node.op == "placeholder" else _short(source)
    if layer is not None and layer.activation is not None:
        op = f"{op}+{_short(layer.activation)}"
    return Node(
        name=node.name,
        op=op,
        layer=layer is not None,
        module=origins.module_of(source)[0],
        source=origins.source_of(source),
        inputs=tuple(_rounded_before(source, simulation.wanted)),
        facts=simulation.facts.get(node),
    )


def _short(node: fx.Node) -> str:
    return origins.op_name(node).removeprefix("aten.")


def _rounded_before(node: fx.Node, wanted: set[fx.Node]) -> list[str]:
    """The nearest rounded nodes that ``node`` is computed from."""
    names: dict[str, None] = {}
    waiting = list(node.all_input_nodes)
    while waiting:
        found = waiting.pop(0)
        if found in wanted:
            names[found.name] = None
        elif found.op == "call_function":
            waiting += found.all_input_nodes
    return list(names)
