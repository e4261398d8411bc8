"""Input patches of a layer and the outputs at their positions, drawn at random from its values.

A layer is a matrix product over its patches, so their second moments say all that rounding has to
know about what goes through it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN, Layer
from edgekit.quantize.simulate import Values

#: Above this patch length second moments are too large to be worth it (their size is the square).
MAX_LENGTH = 4096

_CONVOLUTIONS = (ATEN.conv1d.default, ATEN.conv2d.default)


def sample_patches(
    layer: Layer,
    weight: torch.Tensor,
    inputs: Values,
    outputs: Values,
    limit: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Patches and outputs at the same positions, spread evenly over the samples.

    Args:
        layer: a linear layer, or a convolution of one or two dimensions with any groups.
        weight: its weight, of which only the shape counts.
        inputs: the layer's input, one tensor per sample.
        outputs: what is wanted at its output, one tensor per sample.
        limit: about so many positions are drawn in all.
        generator: of the positions.

    Returns:
        patches (groups, patch length, positions) and outputs (output channels, positions); None for
        another kind of layer, and where patches are longer than :data:`MAX_LENGTH`.
    """
    length = weight[0].numel()
    if length > MAX_LENGTH:
        return None
    per_sample, pairs = max(1, limit // len(inputs)), list(zip(inputs, outputs, strict=True))
    if layer.node.target in graph.LINEARS:
        if weight.dim() != 2 or layer.channel_axis != 0:
            return None
        rows = [_draw_rows(u, y, per_sample, generator) for u, y in pairs]
    elif layer.node.target in _CONVOLUTIONS:
        rows = [_draw_windows(layer, weight, u, y, per_sample, generator) for u, y in pairs]
    else:
        return None
    patches = torch.cat([u for u, _ in rows], dim=-1)
    return patches.view(-1, length, patches.shape[-1]), torch.cat([y for _, y in rows], dim=-1)


def _draw_rows(
    value: torch.Tensor, output: torch.Tensor, count: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    flat, wanted = value.reshape(-1, value.shape[-1]), output.reshape(-1, output.shape[-1])
    drawn = _draw(len(flat), count, generator)
    return flat[drawn].T, wanted[drawn].T


def _draw_windows(
    layer: Layer,
    weight: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    count: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches (input channels * window, positions) and outputs (output channels, positions)."""
    axes = weight.dim() - 2
    batched = value.dim() == axes + 2
    image, wanted = (v if batched else v[None] for v in (value, output))
    stride, padding, dilation = (
        _geometry(layer, index, default, axes) for index, default in ((3, 1), (4, 0), (5, 1))
    )
    if axes == 1:
        image, wanted = image[:, :, None], wanted[:, :, None]
    high, wide = (1, weight.shape[2]) if axes == 1 else weight.shape[2:]
    image = F.pad(image, (padding[1], padding[1], padding[0], padding[0]))
    _, channels, rows, columns = wanted.shape
    drawn = _draw(len(wanted) * rows * columns, count, generator)
    which, row, column = drawn // (rows * columns), drawn // columns % rows, drawn % columns
    down = (row * stride[0])[:, None] + torch.arange(high) * dilation[0]
    along = (column * stride[1])[:, None] + torch.arange(wide) * dilation[1]
    windows = image[which[:, None, None], :, down[:, :, None], along[:, None, :]]
    patches = windows.permute(3, 1, 2, 0).reshape(-1, len(drawn))
    return patches, wanted[which, :, row, column].T.reshape(channels, -1)


def _geometry(layer: Layer, index: int, default: int, axes: int) -> list[int]:
    """An argument of a convolution for rows and columns; one dimension has columns only."""
    args: Any = layer.node.args
    given: Any = args[index] if len(args) > index else default
    each = [int(n) for n in given] if isinstance(given, (list, tuple)) else [int(given)]
    each = each * axes if len(each) == 1 else each
    return each if axes == 2 else [default, *each]


def _draw(total: int, count: int, generator: torch.Generator) -> torch.Tensor:
    if total <= count:
        return torch.arange(total)
    return torch.randperm(total, generator=generator)[:count]
