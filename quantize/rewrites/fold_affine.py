"""Constant factors and summands behind a layer, in the layer's own weight and bias.

ConvNeXt's layer scale is such a factor per channel; attention's ``1 / sqrt(d)`` one for all. Each
is an operator less to quantize and to run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN
from edgekit.quantize.rewrites import edit

_FACTORS = (ATEN.mul.Tensor, ATEN.mul.Scalar, ATEN.div.Tensor, ATEN.div.Scalar)
_SUMMANDS = (ATEN.add.Tensor, ATEN.add.Scalar, ATEN.sub.Tensor, ATEN.sub.Scalar)
_COMMUTING = (ATEN.mul.Tensor, ATEN.add.Tensor)
_DIVISIONS = (ATEN.div.Tensor, ATEN.div.Scalar)
_DIFFERENCES = (ATEN.sub.Tensor, ATEN.sub.Scalar)
#: They bring in values that are not the layer's, or drop some by their size.
_NOT_PASSED = (ATEN.pad.default, ATEN.constant_pad_nd.default, ATEN.max_pool2d.default)


def apply(gm: fx.GraphModule) -> int:
    """Fold constants that are one number or one per channel into the layer that they follow.

    Between the two may be operators that only move values. Exact up to float rounding.
    """
    folded = 0
    for node in list(gm.graph.nodes):
        if node.target not in (*_FACTORS, *_SUMMANDS) or node.kwargs or len(node.args) != 2:
            continue
        source, value = _operands(gm, node)
        if value is None or _shape(node) != _shape(source):
            continue
        axis = _only_axis(value, len(_shape(source)))
        layer = _layer_before(gm, source, axis)
        if layer is None:
            continue
        _change(gm, layer, node.target, value.flatten().double())
        edit.replace(node, source)
        folded += 1
    return folded


def _operands(gm: fx.GraphModule, node: fx.Node) -> tuple[Any, torch.Tensor | None]:
    """What is computed, and the constant that is applied to it."""
    first, second = node.args
    for source, other in ((first, second), (second, first)):
        if not isinstance(source, fx.Node) or source.op != "call_function":
            continue
        if source is second and node.target not in _COMMUTING:
            continue
        value = _constant_value(gm, other)
        if value is not None and value.is_floating_point():
            return source, value
    return None, None


def _constant_value(gm: fx.GraphModule, argument: Any) -> torch.Tensor | None:
    """A number, or what is computed from constants alone; None where inputs have a part in it."""
    if isinstance(argument, (int, float)):
        return torch.tensor(float(argument), dtype=torch.float64)
    if not isinstance(argument, fx.Node) or argument.op == "placeholder":
        return None
    if argument.op == "get_attr":
        return graph.constant(gm, argument)
    if argument.target not in graph.SAME_VALUES or argument.kwargs:
        return None
    inner = _constant_value(gm, argument.args[0])
    if inner is None:
        return None
    assert callable(argument.target)
    moved: torch.Tensor = argument.target(inner, *argument.args[1:])
    return moved


def _only_axis(value: torch.Tensor, dims: int) -> int | None:
    """The axis of a value of ``dims`` axes that the constant varies along; -1 for a number.

    None where it varies along several.
    """
    axes = [i for i, size in enumerate(value.shape) if size > 1]
    if len(axes) > 1:
        return None
    return dims - value.dim() + axes[0] if axes else -1


def _layer_before(gm: fx.GraphModule, node: fx.Node, axis: int | None) -> fx.Node | None:
    """The layer that alone makes the value of ``node``, if ``axis`` is its channels' there."""
    while axis is not None and len(node.users) == 1:
        if edit.layer_weight(gm, node) is not None:
            channels = graph.channel_dim(node, node.meta["val"])
            return node if axis in (-1, channels) else None
        if node.target not in graph.SAME_VALUES or node.target in _NOT_PASSED:
            return None
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if axis >= 0:
            axis = _axis_before(node, axis)
        node = source
    return None


def _axis_before(node: fx.Node, axis: int) -> int | None:
    """Where an axis of a moved value was before it was moved."""
    dims = len(_shape(node))
    if node.target == ATEN.permute.default:
        order: Any = node.args[1]
        return int(order[axis]) % dims
    if node.target == ATEN.transpose.int:
        given: Any = node.args[1:3]
        swapped = [int(axis) % dims for axis in given]
        return swapped[1 - swapped.index(axis)] if axis in swapped else axis
    return axis if node.target in (ATEN.clone.default, ATEN.contiguous.default) else None


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _change(gm: fx.GraphModule, layer: fx.Node, target: Any, value: torch.Tensor) -> None:
    weight, bias = edit.layer_weight(gm, layer), edit.layer_bias(gm, layer)
    assert weight is not None
    channels = edit.output_channels(weight, layer)
    bias = torch.zeros(channels) if bias is None else bias
    if target in _SUMMANDS:
        edit.set_bias(gm, layer, bias.double() + (-value if target in _DIFFERENCES else value))
        return
    factor = (1 / value if target in _DIVISIONS else value).expand(channels)
    transposed = layer.target == ATEN.conv_transpose2d.input
    if transposed:
        groups = channels // weight.shape[1]
        per_group = factor.view(groups, 1, -1, *[1] * (weight.dim() - 2))
        grouped = weight.double().view(groups, -1, *weight.shape[1:])
        edit.set_weight(gm, layer, (grouped * per_group).view(weight.shape))
    else:
        edit.set_weight(gm, layer, weight.double() * factor.view(-1, *[1] * (weight.dim() - 1)))
    edit.set_bias(gm, layer, bias.double() * factor)
