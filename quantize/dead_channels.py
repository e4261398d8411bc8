"""Channels whose weights are nothing beside their bias, which integer arithmetic would lose.

A bias is an int32 on the grid ``input scale x weight scale``. Where all weights of a channel are
zero or nearly so (a batch norm that faded, pruning), that grid is so fine that the bias saturates:
runtimes give zero, or something of the wrong sign, and say nothing. The channel's largest weight is
raised until its bias fits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.prepare import as_module, with_constants
from edgekit.quantize.ranges import Range
from edgekit.types import Recipe

#: Half of what an int32 holds; the rest is for the products.
_MOST = 2**30
#: Of inputs that are always zero.
_LEAST_SCALE = 1e-10


def raise_dead_channels(
    program: torch.export.ExportedProgram, ranges: Mapping[str, Range], recipe: Recipe
) -> torch.export.ExportedProgram:
    """The program with weights that let every bias fit, for a static recipe; changed in place.

    In int8 a raised weight changes its channel by less than 1e-4 of the bias, in int16 by less than
    1e-2.
    """
    gm = as_module(program)
    return with_constants(program, dict(_raised(gm, ranges, recipe)))


def _raised(
    gm: fx.GraphModule, ranges: Mapping[str, Range], recipe: Recipe
) -> Mapping[str, torch.Tensor]:
    found = {}
    for layer in graph.layers(gm):
        source = layer.node.args[0]
        assert isinstance(source, fx.Node)
        if layer.bias is None or source.name not in ranges or layer.name in recipe.float_nodes:
            continue
        low, high = ranges[source.name].of(recipe.ranges)
        # Not as ``activation_grid`` has it, which has a least scale: TFLite has none.
        steps = max(-low, high) / 32767 if recipe.activations == "int16" else (high - low) / 255
        scale = max(steps, _LEAST_SCALE)
        weight, bias = graph.attribute(gm, layer.weight), graph.attribute(gm, layer.bias)
        changed = _with_room(weight, bias, layer.channel_axis, scale)
        if changed is not None:
            found[layer.weight] = changed
    return found


def _with_room(
    weight: torch.Tensor, bias: torch.Tensor, axis: int, scale: float
) -> torch.Tensor | None:
    """The weight with its largest values per channel raised where it has to be; else None."""
    channels = weight.movedim(axis, 0)
    rows = channels.reshape(len(channels), -1).clone()
    # Groups of a transposed convolution share the channels of its weight, and so their scales.
    biases = bias.abs().view(-1, len(channels)).amax(0)
    least = 127 * biases / (scale * _MOST)
    largest, where = rows.abs().max(1)
    low = largest < least
    if not bool(low.any()):
        return None
    signs = torch.where(rows.gather(1, where[:, None])[:, 0] < 0, -1.0, 1.0)
    rows[low, where[low]] = (signs * least)[low]
    return rows.view(channels.shape).movedim(0, axis).contiguous()
