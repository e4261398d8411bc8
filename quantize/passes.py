"""The clean-up passes of :mod:`edgekit.quantize.prepare`: batch norm folded, no-ops dropped, ...

Each takes a functional ATen graph module, edits it in place and returns how many places it changed.
None changes what the program computes, but for the rounding of float32 sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.constants import fold_constants
from edgekit.quantize.graph import ATEN
from edgekit.quantize.products import products_as_linear, vectors_as_rows

Pass = Callable[[fx.GraphModule], int]

_LAYER_DEFAULTS = (None, None, None, [1, 1], [0, 0], [1, 1], 1)
_STRIDE, _PADDING, _DILATION, _GROUPS = 3, 4, 5, 6

#: Convolutions whose padding is a word, with the operator that takes numbers.
_WORDED = {
    ATEN.conv1d.padding: ATEN.conv1d.default,
    ATEN.conv2d.padding: ATEN.conv2d.default,
}
#: Operators that pad by themselves: the index of their padding, its axes, and all defaults.
_PADDED: dict[Any, tuple[int, int, tuple[Any, ...]]] = {
    ATEN.conv2d.default: (_PADDING, 2, _LAYER_DEFAULTS),
    ATEN.avg_pool2d.default: (3, 2, (None, None, [], 0, False, True, None)),
    ATEN.avg_pool3d.default: (3, 3, (None, None, [], 0, False, True, None)),
}
_COPIES = (
    ATEN.clone.default,
    ATEN.alias.default,
    ATEN.detach.default,
    ATEN.dropout.default,
)
_CASTS = (ATEN._to_copy.default, ATEN.type_as.default)
_BROADCASTING = (
    ATEN.add.Tensor,
    ATEN.sub.Tensor,
    ATEN.mul.Tensor,
    ATEN.div.Tensor,
    ATEN.maximum.default,
    ATEN.minimum.default,
)
_SCALED = (
    ATEN.add.Tensor,
    ATEN.add.Scalar,
    ATEN.sub.Tensor,
    ATEN.sub.Scalar,
)


def remove_no_ops(gm: fx.GraphModule) -> int:
    """Clones, dropout, guards, and casts to the dtype that a tensor already has."""
    removed = 0
    for node in list(gm.graph.nodes):
        if node.target == ATEN._assert_tensor_metadata.default:
            gm.graph.erase_node(node)
        elif node.target in (*_COPIES, *_CASTS) and _keeps_dtype(node):
            if _keeps_strides(node):
                node.replace_all_uses_with(node.args[0])
            elif node.target in _CASTS:
                _make_copy(node)
            else:
                continue
        else:
            continue
        removed += 1
    return removed


def drop_expansions(gm: fx.GraphModule) -> int:
    """A tensor is not repeated for operators that broadcast it anyway.

    Where it turns the layout, LiteRT's converter breaks on some that are (by ``normalize``).
    """
    dropped = 0
    for node in list(gm.graph.nodes):
        if node.target != ATEN.expand.default:
            continue
        source = node.args[0]
        for user in list(node.users):
            if user.target not in _BROADCASTING or _promotes(source, user):
                continue
            shapes = [
                (source if operand is node else operand).meta["val"].shape
                for operand in user.all_input_nodes
            ]
            if torch.broadcast_shapes(*shapes) == user.meta["val"].shape:
                user.replace_input_with(node, source)
                dropped += 1
    return dropped


def number_paddings(gm: fx.GraphModule) -> int:
    """A convolution's ``"same"`` and ``"valid"`` padding become numbers, uneven ones a pad."""
    changed = 0
    for node in list(gm.graph.nodes):
        if node.target not in _WORDED:
            continue
        weight = node.args[1].meta["val"]
        sizes = tuple(weight.shape[2:])
        stride = _per_axis(node, _STRIDE, 1, len(sizes))
        dilation = _per_axis(node, _DILATION, 1, len(sizes))
        word = node.args[_PADDING] if len(node.args) > _PADDING else "valid"
        same = word == "same"
        totals = [d * (k - 1) if same else 0 for d, k in zip(dilation, sizes, strict=True)]
        padding = [total // 2 for total in totals]
        source = node.args[0]
        if any(total % 2 for total in totals):
            with gm.graph.inserting_before(node):
                # The last axis comes first; the odd row or column goes behind.
                ends = [end for total in reversed(totals) for end in (total // 2, -(-total // 2))]
                source = gm.graph.call_function(ATEN.pad.default, (source, ends))
            padding = [0] * len(sizes)
        groups = node.args[_GROUPS] if len(node.args) > _GROUPS else 1
        bias = node.args[2] if len(node.args) > 2 else None
        node.args = (source, node.args[1], bias, stride, padding, dilation, groups)
        node.target = _WORDED[node.target]
        changed += 1
    return changed


def spell_out_alpha(gm: fx.GraphModule) -> int:
    """``add`` and ``sub`` with a factor become a product and a plain sum, which runtimes know."""
    changed = 0
    for node in list(gm.graph.nodes):
        if node.target not in _SCALED:
            continue
        alpha = node.kwargs.get("alpha", node.args[2] if len(node.args) > 2 else 1)
        if len(node.args) < 3 and "alpha" not in node.kwargs:
            continue
        first, second = node.args[:2]
        if alpha != 1:
            if isinstance(second, fx.Node):
                with gm.graph.inserting_before(node):
                    second = gm.graph.call_function(ATEN.mul.Tensor, (second, alpha))
            else:
                second = second * alpha
        node.args, node.kwargs = (first, second), {}
        changed += 1
    return changed


def fold_batch_norm(gm: fx.GraphModule) -> int:
    """Batch norm after a convolution or linear layer becomes part of its weight and bias."""
    folded = 0
    for node in list(gm.graph.nodes):
        if node.target != ATEN._native_batch_norm_legit_no_training.default:
            continue
        layer = node.args[0]
        if layer.target not in (ATEN.conv1d.default, ATEN.conv2d.default, ATEN.linear.default):
            continue
        weight = graph.constant(gm, layer.args[1])
        if weight is None or len(layer.users) != 1:
            continue
        if layer.meta["val"].dim() != weight.dim():
            # Batch norm acts on axis 1, which is not the layer's channels on (N, L, C) or (C, H, W)
            continue
        bias_node = layer.args[2] if len(layer.args) > 2 else None
        bias = graph.constant(gm, bias_node)
        if bias is None and bias_node is not None:
            continue
        gamma, beta, mean, variance = (graph.constant(gm, arg) for arg in node.args[1:5])
        if any(graph.constant(gm, arg) is None for arg in node.args[1:5] if arg is not None):
            # Conditional networks compute some of them.
            continue
        assert mean is not None and variance is not None
        scale = (variance.double() + node.args[6]).rsqrt()
        scale = scale if gamma is None else scale * gamma.double()
        shift = -mean.double() if bias is None else bias.double() - mean.double()
        new_bias = shift * scale + (0 if beta is None else beta.double())
        column = (-1,) + (1,) * (weight.dim() - 1)
        new_weight = weight.double() * scale.view(column)
        _own(gm, layer, 1, new_weight.to(weight.dtype))
        _own(gm, layer, 2, new_bias.to(weight.dtype))
        for user in list(node.users):
            assert user.args[1] == 0
            user.replace_all_uses_with(layer)
        folded += 1
    return folded


def fold_padding(gm: fx.GraphModule) -> int:
    """A symmetric zero pad before convolutions or average pooling becomes their own padding."""
    folded = 0
    for node in list(gm.graph.nodes):
        users = list(node.users)
        if node.target != ATEN.pad.default or not all(
            user.args[0] is node and _own_padding(user, node) for user in users
        ):
            continue
        for user in users:
            index, _, defaults = _PADDED[user.target]
            graph.set_argument(user, index, _own_padding(user, node), defaults)
            user.replace_input_with(node, node.args[0])
        folded += 1
    return folded


def add_missing_biases(gm: fx.GraphModule) -> int:
    """Every layer gets a bias, so that bias correction has something to correct."""
    added = 0
    for layer in list(graph.layers(gm)):
        if len(layer.node.args) > 2 and layer.node.args[2] is not None:
            continue
        weight = graph.attribute(gm, layer.weight)
        channels = weight.shape[layer.channel_axis]
        if layer.node.target == ATEN.conv_transpose2d.input and len(layer.node.args) > 6:
            channels *= int(layer.node.args[6])  # type: ignore[arg-type]
        _own(gm, layer.node, 2, torch.zeros(channels, dtype=weight.dtype))
        added += 1
    return added


def own_constants(gm: fx.GraphModule) -> int:
    """A weight or bias that several operators use is copied: every use of it is its own layer.

    Ranges differ from use to use, so a correction made for one of them is wrong for the others, and
    runtimes quantize a shared bias by the input scale of the first use only.
    """
    copied = 0
    uses: dict[str, int] = {}
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            uses[node.target] = uses.get(node.target, 0) + len(node.users)
    for layer in list(graph.layers(gm)):
        for index, target in ((1, layer.weight), (2, layer.bias)):
            if target is None or uses[target] < 2:
                continue
            uses[target] -= 1
            _own(gm, layer.node, index, graph.attribute(gm, target))
            copied += 1
    return copied


def _own(gm: fx.GraphModule, layer: fx.Node, index: int, value: torch.Tensor) -> None:
    """Give a layer a weight (argument 1) or bias (2) that nothing else uses."""
    kind = "weight" if index == 1 else "bias"
    node = graph.add_constant(gm, f"{layer.name}_{kind}", value, layer)
    graph.set_argument(layer, index, node, _LAYER_DEFAULTS)


def _per_axis(node: fx.Node, index: int, default: int, axes: int) -> list[int]:
    given: Any = node.args[index] if len(node.args) > index else default
    values = list(given) if isinstance(given, (list, tuple)) else [given]
    return values * axes if len(values) == 1 else values


def _keeps_strides(node: fx.Node) -> bool:
    """False for the copy that a view needs: views are not made of just any memory layout."""
    source: Any = node.args[0]
    return bool(source.meta["val"].stride() == node.meta["val"].stride())


def _make_copy(cast: fx.Node) -> None:
    """A cast that changes nothing but the memory layout is one of the copies that views need."""
    layout = cast.kwargs.get("memory_format", torch.contiguous_format)
    cast.target, cast.args = ATEN.clone.default, cast.args[:1]
    cast.kwargs = {"memory_format": layout}


def _promotes(source: fx.Node, user: fx.Node) -> bool:
    """Whether one number has less say in the dtype of the result than a tensor of it has."""
    value = source.meta["val"]
    dtypes = {operand.meta["val"].dtype for operand in user.all_input_nodes}
    return bool(value.dim() == 0 and dtypes != {value.dtype})


def _keeps_dtype(node: fx.Node) -> bool:
    source: Any = node.args[0]
    before, after = source.meta["val"], node.meta["val"]
    return bool(before.dtype == after.dtype and before.device == after.device)


def _own_padding(user: fx.Node, pad: fx.Node) -> list[int] | None:
    """The padding with which an operator does without the pad before it; None if there is none."""
    if user.target not in _PADDED:
        return None
    index, axes, defaults = _PADDED[user.target]
    amounts: Any = pad.args[1]
    rest: Any = (*pad.args[2:], *("constant", None)[len(pad.args) - 2 :])
    mode, value = rest
    # The last axis comes first; axes that are not there are not padded.
    amounts = [*amounts, *[0] * (2 * axes - len(amounts))]
    if mode != "constant" or value not in (None, 0, 0.0) or len(amounts) != 2 * axes:
        return None
    if amounts[::2] != amounts[1::2] or min(amounts) < 0:
        return None
    own = _per_axis(user, index, 0, axes)
    total = [one + other for one, other in zip(own, amounts[::-2], strict=True)]
    if user.target == ATEN.conv2d.default:
        return total
    ceil_mode, counts_padding, divisor = (*user.args, *defaults[len(user.args) :])[4:]
    kernel = _per_axis(user, 1, 0, axes)
    within = all(2 * pads <= length for pads, length in zip(total, kernel, strict=True))
    return total if within and counts_padding and not ceil_mode and divisor is None else None


#: In the order in which they are applied; a shared weight is only copied once it is final.
PASSES: tuple[Pass, ...] = (
    remove_no_ops,
    fold_constants,
    drop_expansions,
    number_paddings,
    spell_out_alpha,
    products_as_linear,
    vectors_as_rows,
    fold_batch_norm,
    fold_padding,
    add_missing_biases,
    own_constants,
)
