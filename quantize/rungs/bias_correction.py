"""Bias correction: the mean shift that quantization causes in each layer is taken off its bias.

Sequential and empirical, after "Data-Free Quantization Through Weight Equalization and Bias
Correction" (Nagel et al., 2019), section 4.2 with calibration data in place of batch-norm
statistics: layer by layer, with weights and activations rounded up to there and all earlier
corrections in force, the mean of each output channel is matched to the float program's. The result
is a change of *float* biases, so that it works unchanged in every runtime.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.rungs.base import Work
from edgekit.quantize.simulate import Grid, Values, rounded_weights, run_samples

#: Calibration samples over which means are taken.
SAMPLES = 64


def apply(work: Work) -> str:
    """Change the biases of ``work.program``."""
    samples = work.calibration(SAMPLES)
    if work.channel_means is None:
        work.channel_means = channel_means(work.reference, samples)
    count = correct_biases(
        work.program,
        work.channel_means,
        samples,
        work.grids,
        float_nodes=work.float_layers,
    )
    return f"biases of {count} layers" if count else ""


def channel_means(
    gm: fx.GraphModule, samples: Sequence[tuple[torch.Tensor, ...]]
) -> dict[str, torch.Tensor]:
    """The mean of each output channel of all layers with a bias, shape (channels,), by name."""
    layers = {layer.name for layer in graph.layers(gm) if layer.bias is not None}
    means = {}

    def observe(node: fx.Node, values: Values) -> Values:
        if node.name in layers:
            means[node.name] = _channel_mean(node, values)
        return values

    run_samples(gm, samples, observe)
    return means


def correct_biases(
    gm: fx.GraphModule,
    means: Mapping[str, torch.Tensor],
    samples: Sequence[tuple[torch.Tensor, ...]],
    grids: Mapping[str, Grid],
    *,
    float_nodes: Collection[str] = (),
) -> int:
    """Correct the biases of ``gm`` in place, so that its means are the given ones.

    Args:
        gm: the program that will be exported; its weights may be rounded already.
        means: what :func:`channel_means` gives for the float program, the same graph.
        samples: calibration inputs, the same.
        grids: activation grids by node name.
        float_nodes: layers of these names keep float weights.

    Returns:
        The number of layers that were corrected.
    """
    layers = {layer.node.name: layer for layer in graph.layers(gm) if layer.bias is not None}

    def correct(node: fx.Node, values: Values) -> Values:
        layer = layers.get(node.name)
        if layer is not None and layer.bias is not None:
            shift = means[node.name] - _channel_mean(node, values)
            graph.set_attribute(gm, layer.bias, graph.attribute(gm, layer.bias) + shift)
            shaped = shift.view(_channel_shape(node, values[0]))
            values = [value + shaped for value in values]
        grid = grids.get(node.name)
        if grid is not None:
            values = [grid.round(value) for value in values]
        return values

    with rounded_weights(gm, float_nodes):
        run_samples(gm, samples, correct)
    return len(layers)


def _channel_shape(node: fx.Node, value: torch.Tensor) -> list[int]:
    shape = [1] * value.dim()
    shape[graph.channel_dim(node, value)] = -1
    return shape


def _channel_mean(node: fx.Node, values: Values) -> torch.Tensor:
    """Mean over samples and positions: shape (channels,)."""
    channel = graph.channel_dim(node, values[0])
    total: torch.Tensor | None = None
    for value in values:
        # Not mean(dims): without dimensions but the channels', that is the mean over everything.
        mean = value.double().movedim(channel, 0).reshape(value.shape[channel], -1).mean(1)
        total = mean if total is None else total + mean
    assert total is not None
    return (total / len(values)).float()
