"""Learned rounding: each layer's weights are rounded so that it repairs what came in quantized.

After "Up or Down? Adaptive Rounding for Post-Training Quantization" (Nagel et al., 2020): per layer
a soft choice between floor and ceil is learned by gradient descent, with a regulariser that drives
it to 0 or 1. Layers are taken in order with the *quantized* network's input and the *float*
network's output, so that a layer also makes up for errors from before it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.graph import Layer
from edgekit.quantize.rungs.base import Sample, Work
from edgekit.quantize.simulate import Grid, PairedRun, weight_scales

#: Calibration samples that are learned from.
SAMPLES = 32
_STEPS = 400
_BATCH = 4
_RATE = 1e-2
_REGULARISER = 0.01
#: Share of the steps without the regulariser.
_WARM_UP = 0.2
#: The stretched sigmoid of the paper, section 3.2.
_ZETA, _GAMMA = 1.1, -0.1


def apply(work: Work) -> str:
    """Change the weights of ``work.program``."""
    count = learn_rounding(
        work.program,
        work.reference,
        work.calibration(SAMPLES),
        work.grids,
        float_nodes=work.float_nodes,
        on_layer=work.on_layer,
    )
    return f"weights of {count} layers" if count else ""


def learn_rounding(
    gm: fx.GraphModule,
    reference: fx.GraphModule,
    samples: Sequence[Sample],
    grids: dict[str, Grid],
    *,
    float_nodes: Collection[str] = (),
    on_layer: Callable[[], None] = lambda: None,
) -> int:
    """Replace the weights of ``gm`` by learned roundings on the per-channel max/127 grid.

    Args:
        gm: the program that will be exported; its biases take part, its weights are replaced.
        reference: the float program, the same graph; its weights are what is rounded.
        samples: calibration inputs.
        grids: activation grids by node name.
        float_nodes: layers of these names keep float weights.

    Returns:
        The number of layers that were rounded.
    """
    layers = {x.name: x for x in graph.layers(reference) if x.name not in float_nodes}
    rounded: set[str] = set()
    generator = torch.Generator().manual_seed(0)
    run = PairedRun(reference, gm, samples, grids)
    for node in run.nodes():
        layer = layers.get(node.name)
        if layer is not None and layer.weight not in rounded:
            inputs = run.quantized(node.args[0])
            wanted = run.float_result(node)
            weight = graph.attribute(reference, layer.weight)
            learned = _learn(layer, gm, weight, inputs, wanted, generator)
            graph.set_attribute(gm, layer.weight, learned)
            rounded.add(layer.weight)
            on_layer()
        run.step(node)
    return len(rounded)


def _learn(
    layer: Layer,
    gm: fx.GraphModule,
    weight: torch.Tensor,
    inputs: list[torch.Tensor],
    wanted: list[torch.Tensor],
    generator: torch.Generator,
) -> torch.Tensor:
    scales = weight_scales(weight, layer.channel_axis)
    target = weight / scales
    floor = target.floor().clamp(-127, 126)
    # The largest weight of a channel is the grid: a converter must find the same scale again.
    frozen = target.round().abs() >= 127
    fraction = (target - floor).clamp(0.001, 0.999)
    logits = -torch.log((_ZETA - _GAMMA) / (fraction - _GAMMA) - 1)
    logits.requires_grad_(True)
    bias = graph.attribute(gm, layer.bias) if layer.bias else None
    optimiser = torch.optim.Adam([logits], lr=_RATE)
    rest = layer.node.args[3:]
    assert callable(layer.node.target)
    power = sum(float(value.square().mean()) for value in wanted) / len(wanted)
    for step in range(_STEPS):
        chosen = torch.randint(len(inputs), (min(_BATCH, len(inputs)),), generator=generator)
        soft = _soft(logits)
        quantized = torch.where(frozen, target.round(), floor + soft) * scales
        loss = torch.zeros(())
        for index in chosen.tolist():
            result = layer.node.target(inputs[index], quantized, bias, *rest)
            loss = loss + (result - wanted[index]).square().mean()
        loss = loss / (len(chosen) * max(power, 1e-12))
        progress = step / _STEPS
        if progress > _WARM_UP:
            beta = 20 - 18 * (progress - _WARM_UP) / (1 - _WARM_UP)
            loss = loss + _REGULARISER * (1 - (2 * soft - 1).abs().pow(beta)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    up = (_soft(logits.detach()) >= 0.5).float()
    integers = torch.where(frozen, target.round(), floor + up).clamp(-127, 127)
    return (integers * scales).contiguous()


def _soft(logits: torch.Tensor) -> torch.Tensor:
    return (torch.sigmoid(logits) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)
