"""Hessian-guided rounding: each weight goes up or down so that the layer's output changes least.

For each layer, H = E[u u^T] over its float input patches u; the squared output error of a rounding
error e is e^T H e. Starting from round-to-nearest, the flip that lowers it most is made, per output
channel, until none lowers it. This is the layer-wise quadratic model of "Up or Down? Adaptive
Rounding for Post-Training Quantization" (Nagel et al., 2020) with coordinate descent in place of a
learned relaxation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.patches import sample_patches
from edgekit.quantize.rungs.base import Work
from edgekit.quantize.simulate import Get, Values, run_samples, weight_scales

#: Calibration samples that patches are taken from.
SAMPLES = 16
#: Input patches per layer from which H is estimated.
MAX_PATCHES = 4096

_MAX_SWEEPS = 300


def apply(work: Work) -> str:
    """Change the weights of ``work.program``."""
    samples = work.calibration(SAMPLES)
    count = round_weights(work.program, samples, float_nodes=work.float_layers)
    return f"weights of {count} layers" if count else ""


def round_weights(
    gm: fx.GraphModule,
    samples: Sequence[tuple[torch.Tensor, ...]],
    *,
    float_nodes: Collection[str] = (),
    seed: int = 0,
) -> int:
    """Replace the weights of ``gm`` by rounded ones that sit on the per-channel max/127 grid.

    The largest weight of a channel is never moved, so a converter that derives the grid again from
    the weights finds the same one. Returns the number of layers that were rounded.
    """
    known = {layer.node: layer for layer in graph.layers(gm) if layer.name not in float_nodes}
    generator = torch.Generator().manual_seed(seed)
    rounded: dict[str, torch.Tensor] = {}
    pending: dict[fx.Node, Values] = {}

    def before(node: fx.Node, get: Get) -> None:
        layer = known.get(node)
        source = node.args[0] if node.args else None
        if layer is None or layer.weight in rounded or not isinstance(source, fx.Node):
            return
        if source.op != "get_attr":
            pending[node] = get(source)

    def after(node: fx.Node, values: Values) -> Values:
        inputs = pending.pop(node, None)
        if inputs is not None:
            layer = known[node]
            weight = graph.attribute(gm, layer.weight)
            found = sample_patches(layer, weight, inputs, values, MAX_PATCHES, generator)
            if found is not None:
                patches, _ = found
                hessian = patches @ patches.mT / patches.shape[-1]
                rounded[layer.weight] = descend(weight, hessian)
        return values

    run_samples(gm, samples, after, before)
    for target, weight in rounded.items():
        graph.set_attribute(gm, target, weight)
    return len(rounded)


def descend(
    weight: torch.Tensor, hessian: torch.Tensor, wanted: torch.Tensor | None = None
) -> torch.Tensor:
    """Greedy floor/ceil flips per output channel; all channels are advanced together.

    Lowers ``q H q^T - 2 q wanted^T`` for each row q of the rounded weight.

    Args:
        weight: float weight, shape (output channels, ...); its own maxima give the grid.
        hessian: second moments of the input patches, shape (groups, length, length).
        wanted: ``E[y u^T]`` of the wanted outputs y, shape (output channels, length); default: of
            those that the float weight gives.

    Returns:
        the weight on the per-channel max/127 grid; same shape.
    """
    groups, length, _ = hessian.shape
    scales = weight_scales(weight, 0).flatten(1)
    matrix = weight.flatten(1)
    target = matrix / scales
    rounded = target.round().clamp(-127, 127)
    other = torch.where(target > rounded, rounded + 1, rounded - 1)
    frozen = (rounded.abs() >= 127) | (other.abs() > 127)
    step = (other - rounded) * scales
    error = rounded * scales - (matrix if wanted is None else 0)
    slope = (error.view(groups, -1, length) @ hessian).view_as(matrix)
    if wanted is not None:
        slope = slope - wanted
    rows = torch.arange(len(matrix))
    group = rows // (len(matrix) // groups)
    curvature = hessian.diagonal(dim1=-2, dim2=-1)[group]
    # What a flip changes: step^2 * curvature + 2 * step * slope. The first part never changes.
    fixed = (step * step * curvature).masked_fill_(frozen, torch.inf)
    double = 2 * step
    for _ in range(min(_MAX_SWEEPS, 2 * length)):
        best, column = torch.addcmul(fixed, double, slope).min(1)
        improving = (best < 0).nonzero()[:, 0]
        if not len(improving):
            break
        at = column[improving]
        moved = step[improving, at]
        slope[improving] += moved[:, None] * hessian[group[improving], at]
        rounded[improving, at] += torch.sign(moved)
        step[improving, at] = -moved
        double[improving, at] = -2 * moved
    return (rounded * scales).view_as(weight).contiguous()
