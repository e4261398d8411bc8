"""Adaptive rounding: each layer's weights are rounded so that they repair what came in quantized.

The asymmetric objective of "Up or Down? Adaptive Rounding for Post-Training Quantization" (Nagel et
al., 2020), section 3.3: layers are taken in order, and each is to give the *float* network's output
from the *quantized* network's input, so that it also makes up for errors from before it. Without
the activation function, that error is quadratic in the weights; its second moments are gathered
once, and the choice between floor and ceil is descended on them, which takes seconds where gradient
descent on a relaxation takes minutes. Means are left to the bias, which is set to meet them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.graph import Layer
from edgekit.quantize.patches import sample_patches
from edgekit.quantize.rungs.base import Sample, Work
from edgekit.quantize.rungs.hessian_rounding import descend
from edgekit.quantize.simulate import Grid, PairedRun

#: Calibration samples that second moments are taken from.
SAMPLES = 64
#: Input patches per layer.
MAX_PATCHES = 16384
#: Pull towards the float weight, as a share of the mean second moment: what a few thousand patches
#: say about little-used inputs is not to be trusted.
_PULL = 0.05


def apply(work: Work) -> str:
    """Change the weights and biases of ``work.program``."""
    count = round_in_order(
        work.program,
        work.reference,
        work.calibration(SAMPLES),
        work.grids,
        float_nodes=work.float_nodes,
    )
    return f"weights of {count} layers" if count else ""


def round_in_order(
    gm: fx.GraphModule,
    reference: fx.GraphModule,
    samples: Sequence[Sample],
    grids: dict[str, Grid],
    *,
    float_nodes: Collection[str] = (),
) -> int:
    """Replace the weights of ``gm`` by roundings on the per-channel max/127 grid.

    Args:
        gm: the program that will be exported; its weights and biases are replaced.
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
        layer, source = layers.get(node.name), node.args[0] if node.args else None
        constant = isinstance(source, fx.Node) and source.op == "get_attr"
        if layer is not None and layer.weight not in rounded and not constant:
            inputs, wanted = run.quantized(source), run.float_result(node)
            if _round(layer, gm, reference, inputs, wanted, generator):
                rounded.add(layer.weight)
        run.step(node)
    return len(rounded)


def _round(
    layer: Layer,
    gm: fx.GraphModule,
    reference: fx.GraphModule,
    inputs: list[torch.Tensor],
    outputs: list[torch.Tensor],
    generator: torch.Generator,
) -> bool:
    weight = graph.attribute(reference, layer.weight)
    found = sample_patches(layer, weight, inputs, outputs, MAX_PATCHES, generator)
    if found is None:
        return False
    patches, wanted = found
    groups, length, count = patches.shape
    patch_means, output_means = patches.mean(-1, keepdim=True), wanted.mean(-1, keepdim=True)
    patches = patches - patch_means
    by_group = (wanted - output_means).view(groups, -1, count)
    hessian = patches @ patches.mT / count
    cross = (by_group @ patches.mT / count).view(-1, length)
    pull = _PULL * hessian.diagonal(dim1=-2, dim2=-1).mean(-1)
    hessian.diagonal(dim1=-2, dim2=-1).add_(pull[:, None])
    cross += pull.repeat_interleave(len(cross) // groups)[:, None] * weight.flatten(1)
    chosen = descend(weight, hessian, cross)
    graph.set_attribute(gm, layer.weight, chosen)
    if layer.bias is not None:
        given = chosen.view(groups, -1, length) @ patch_means
        graph.set_attribute(gm, layer.bias, (output_means.flatten() - given.flatten()).contiguous())
    return True
