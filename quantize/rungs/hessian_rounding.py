"""Hessian-guided rounding: each weight goes up or down so that the layer's output changes least.

For each layer, H = E[u u^T] over its float input patches u; the squared output error of a rounding
error e is e^T H e. Starting from round-to-nearest, the flip that lowers it most is made, per output
channel, until none lowers it. This is the layer-wise quadratic model of "Up or Down? Adaptive
Rounding for Post-Training Quantization" (Nagel et al., 2020) with coordinate descent in place of a
learned relaxation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN, Layer
from edgekit.quantize.rungs.base import Work
from edgekit.quantize.simulate import Values, run_samples, weight_scales

#: Calibration samples that patches are taken from.
SAMPLES = 16

#: Input patches per layer from which H is estimated.
MAX_PATCHES = 4096
#: Above this patch length H is too large to be worth it (its size is the square).
MAX_PATCH_LENGTH = 4096
_MAX_SWEEPS = 300


def apply(work: Work) -> str:
    """Change the weights of ``work.program``."""
    samples = work.calibration(SAMPLES)
    count = round_weights(
        work.program, samples, float_nodes=work.float_nodes, on_layer=work.on_layer
    )
    return f"weights of {count} layers" if count else ""


def round_weights(
    gm: fx.GraphModule,
    samples: Sequence[tuple[torch.Tensor, ...]],
    *,
    float_nodes: Collection[str] = (),
    seed: int = 0,
    on_layer: Callable[[], None] = lambda: None,
) -> int:
    """Replace the weights of ``gm`` by rounded ones that sit on the per-channel max/127 grid.

    The largest weight of a channel is never moved, so a converter that derives the grid again from
    the weights finds the same one. Returns the number of layers that were rounded.
    """
    known = {layer.node: layer for layer in graph.layers(gm) if layer.name not in float_nodes}
    generator = torch.Generator().manual_seed(seed)
    rounded: dict[str, torch.Tensor] = {}

    def before(node: fx.Node, values_of: Callable[[fx.Node], Values]) -> None:
        layer = known.get(node)
        if layer is None or layer.weight in rounded:
            return
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if source.op != "get_attr":
            weight = graph.attribute(gm, layer.weight)
            hessian = _hessian(layer, weight, values_of(source), generator)
            if hessian is not None:
                rounded[layer.weight] = _descend(weight, hessian)
        on_layer()

    run_samples(gm, samples, lambda node, values: values, before)
    for target, weight in rounded.items():
        graph.set_attribute(gm, target, weight)
    return len(rounded)


def _hessian(
    layer: Layer, weight: torch.Tensor, inputs: Values, generator: torch.Generator
) -> torch.Tensor | None:
    """E[u u^T]: shape (k, k) for dense layers, (channels, k, k) for depthwise ones."""
    if layer.node.target == ATEN.linear.default:
        patches = torch.cat([value.reshape(-1, value.shape[-1]) for value in inputs])
    elif layer.node.target == ATEN.conv2d.default:
        groups = int(_argument(layer.node, 6, 1))
        if groups == weight.shape[0] and groups > 1:
            return _depthwise_hessian(layer, weight, inputs, generator)
        if groups != 1:
            return None
        per_sample = max(1, MAX_PATCHES // len(inputs))
        patches = torch.cat(
            [
                _sample_rows(_unfold(layer, weight, value)[0].T, per_sample, generator)
                for value in inputs
            ]
        )
    else:
        return None
    if patches.shape[1] > MAX_PATCH_LENGTH:
        return None
    patches = _sample_rows(patches, MAX_PATCHES, generator)
    return patches.T @ patches / len(patches)


def _depthwise_hessian(
    layer: Layer, weight: torch.Tensor, inputs: Values, generator: torch.Generator
) -> torch.Tensor:
    channels, taps = weight.shape[0], weight[0].numel()
    per_sample = max(1, MAX_PATCHES // len(inputs))
    parts = []
    for value in inputs:
        unfolded = _unfold(layer, weight, value)[0].view(channels, taps, -1)
        if unfolded.shape[-1] > per_sample:
            chosen = torch.randperm(unfolded.shape[-1], generator=generator)[:per_sample]
            unfolded = unfolded[..., chosen]
        parts.append(unfolded)
    patches = torch.cat(parts, dim=-1)
    return patches @ patches.transpose(1, 2) / patches.shape[-1]


def _unfold(layer: Layer, weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Patches of the first image of (N, C, H, W) or of (C, H, W): (1, C * kh * kw, positions)."""
    stride, padding, dilation = (_argument(layer.node, i, d) for i, d in ((3, 1), (4, 0), (5, 1)))
    kernel = tuple(weight.shape[2:])
    image = value[:1] if value.dim() == 4 else value[None]
    return F.unfold(image, kernel, dilation=dilation, padding=padding, stride=stride)


def _argument(node: fx.Node, index: int, default: int) -> Any:
    return node.args[index] if len(node.args) > index else default


def _sample_rows(rows: torch.Tensor, limit: int, generator: torch.Generator) -> torch.Tensor:
    if len(rows) <= limit:
        return rows
    return rows[torch.randperm(len(rows), generator=generator)[:limit]]


def _descend(weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Greedy floor/ceil flips per output channel; all channels are advanced together."""
    scales = weight_scales(weight, 0)
    target = (weight / scales).flatten(1)
    rounded = target.round().clamp(-127, 127)
    other = torch.where(target > rounded, rounded + 1, rounded - 1)
    frozen = (rounded.abs() >= 127) | (other.abs() > 127)
    error, delta = rounded - target, other - rounded
    per_channel = hessian.dim() == 3
    slope = (hessian @ error[:, :, None])[:, :, 0] if per_channel else error @ hessian
    curvature = hessian.diagonal(dim1=-2, dim2=-1)
    rows = torch.arange(len(weight))
    for _ in range(min(_MAX_SWEEPS, 2 * target.shape[1])):
        gain = (delta * delta * curvature + 2 * delta * slope).masked_fill(frozen, torch.inf)
        best, column = gain.min(1)
        improves = best < 0
        if not improves.any():
            break
        step = torch.where(improves, delta[rows, column], 0.0)
        columns_of_h = hessian[rows, column] if per_channel else hessian[column]
        slope = slope + step[:, None] * columns_of_h
        rounded[rows, column] += step
        delta[rows, column] = torch.where(improves, -delta[rows, column], delta[rows, column])
    return (rounded.view_as(weight) * scales).contiguous()
