"""From an eager model to the one program that every artifact is made from.

``torch.export``, functionalisation, then clean-up that every converter profits from: batch norm and
symmetric pads folded into convolutions, dropout and other operators that do nothing removed. The
result must compute what the eager model computes; :func:`check_equal` proves it on real samples
before anything else happens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from edgekit import quality
from edgekit.errors import SourceError
from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN

#: What preparation may cost: the difference is rounding of float32 sums.
MIN_SQNR_DB = 100.0

_CONV_DEFAULTS = (None, None, None, [1, 1], [0, 0], [1, 1], 1)
_PADDING = 4

Pass = Callable[[fx.GraphModule], int]


def export_program(
    module: torch.nn.Module, example_inputs: tuple[torch.Tensor, ...]
) -> torch.export.ExportedProgram:
    """``torch.export`` with functional operators; the batch size is that of the example.

    Raises:
        SourceError: the model cannot be exported; says where.
    """
    try:
        with torch.no_grad():
            exported = torch.export.export(module, example_inputs)
        functional: torch.export.ExportedProgram = exported.run_decompositions({})
        return functional
    except Exception as error:
        raise SourceError(
            f"torch.export cannot trace the model: {_first_line(error)}",
            remedy="Data-dependent Python control flow must be rewritten with torch.cond, or the "
            "model wrapped so that forward() takes and returns tensors only.",
        ) from error


def prepare(
    exported: torch.export.ExportedProgram, example_inputs: tuple[torch.Tensor, ...]
) -> tuple[torch.export.ExportedProgram, tuple[str, ...]]:
    """Clean the program up; returns it with the names of the passes that changed something."""
    gm = as_module(exported)
    applied = []
    for graph_pass in PASSES:
        if graph_pass(gm):
            applied.append(graph_pass.__name__)
            gm.graph.eliminate_dead_code()
            gm.recompile()
    return re_export(gm, example_inputs), tuple(applied)


def as_module(exported: torch.export.ExportedProgram) -> fx.GraphModule:
    """The program as a graph module whose weights are ``get_attr`` nodes, without guards."""
    module = exported.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    return module


def re_export(
    gm: fx.GraphModule, example_inputs: tuple[torch.Tensor, ...]
) -> torch.export.ExportedProgram:
    """Make an edited graph module an exported program again, with node names settled."""
    gm.graph.lint()
    gm.recompile()
    with torch.no_grad():
        exported: torch.export.ExportedProgram = torch.export.export(gm, example_inputs)
    functional: torch.export.ExportedProgram = exported.run_decompositions({})
    return functional


def run(
    exported: torch.export.ExportedProgram | fx.GraphModule, inputs: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """The outputs as a flat tuple, whatever structure the model returns."""
    module = exported if isinstance(exported, fx.GraphModule) else as_module(exported)
    with torch.inference_mode():
        return flatten(module(*inputs))


def flatten(outputs: Any) -> tuple[torch.Tensor, ...]:
    leaves, _ = torch.utils._pytree.tree_flatten(outputs)
    return tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))


def check_equal(
    reference: Sequence[np.ndarray], prepared: Sequence[np.ndarray], names: Sequence[str]
) -> float:
    """SQNR in dB of the prepared program against eager, the worst output tensor's.

    Raises:
        SourceError: it is below :data:`MIN_SQNR_DB`.
    """
    worst = min(
        (quality.sqnr_db(a, b), name) for a, b, name in zip(reference, prepared, names, strict=True)
    )
    if worst[0] < MIN_SQNR_DB:
        raise SourceError(
            f"The prepared program does not compute what the model computes: output "
            f"{worst[1]!r} agrees to {worst[0]:.1f} dB only (at least {MIN_SQNR_DB:.0f} needed).",
            remedy="Is the model deterministic in eval mode? If so, this is a bug in edgekit.",
        )
    return worst[0]


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
        bias = graph.constant(gm, layer.args[2]) if len(layer.args) > 2 else None
        gamma, beta, mean, variance = (graph.constant(gm, arg) for arg in node.args[1:5])
        assert mean is not None and variance is not None
        scale = (variance.double() + node.args[6]).rsqrt()
        scale = scale if gamma is None else scale * gamma.double()
        shift = -mean.double() if bias is None else bias.double() - mean.double()
        new_bias = shift * scale + (0 if beta is None else beta.double())
        column = (-1,) + (1,) * (weight.dim() - 1)
        new_weight = weight.double() * scale.view(column)
        graph.set_argument(
            layer,
            1,
            graph.add_constant(gm, f"{layer.name}_weight", new_weight.to(weight.dtype), layer),
            _CONV_DEFAULTS,
        )
        graph.set_argument(
            layer,
            2,
            graph.add_constant(gm, f"{layer.name}_bias", new_bias.to(weight.dtype), layer),
            _CONV_DEFAULTS,
        )
        for user in list(node.users):
            assert user.args[1] == 0
            user.replace_all_uses_with(layer)
        folded += 1
    return folded


def fold_padding(gm: fx.GraphModule) -> int:
    """A symmetric zero pad before convolutions becomes their own padding."""
    folded = 0
    for node in list(gm.graph.nodes):
        if node.target != ATEN.pad.default or not _is_symmetric_zero_pad(node):
            continue
        users = list(node.users)
        if not all(user.target == ATEN.conv2d.default and user.args[0] is node for user in users):
            continue
        left, _, top, _ = node.args[1]
        for user in users:
            padding = list(user.args[_PADDING]) if len(user.args) > _PADDING else [0, 0]
            padding = padding * 2 if len(padding) == 1 else padding
            padding = [padding[0] + top, padding[1] + left]
            graph.set_argument(user, _PADDING, padding, _CONV_DEFAULTS)
            user.replace_input_with(node, node.args[0])
        folded += 1
    return folded


def add_missing_biases(gm: fx.GraphModule) -> int:
    """Every layer gets a bias, so that bias correction has something to correct."""
    added = 0
    for layer in list(graph.layers(gm)):
        if layer.bias is not None:
            continue
        weight = graph.attribute(gm, layer.weight)
        channels = weight.shape[layer.channel_axis]
        if layer.node.target == ATEN.conv_transpose2d.input and len(layer.node.args) > 6:
            channels *= int(layer.node.args[6])  # type: ignore[arg-type]
        zeros = torch.zeros(channels, dtype=weight.dtype)
        bias = graph.add_constant(gm, f"{layer.name}_bias", zeros, layer.node)
        graph.set_argument(layer.node, 2, bias, _CONV_DEFAULTS)
        added += 1
    return added


def remove_no_ops(gm: fx.GraphModule) -> int:
    """Clones, dropout and casts to the dtype that a tensor already has."""
    removed = 0
    for node in list(gm.graph.nodes):
        if node.target in (ATEN.clone.default, ATEN.alias.default, ATEN.dropout.default):
            node.replace_all_uses_with(node.args[0])
            removed += 1
    return removed


def _is_symmetric_zero_pad(node: fx.Node) -> bool:
    amounts: Any = node.args[1]
    mode = node.args[2] if len(node.args) > 2 else "constant"
    value = node.args[3] if len(node.args) > 3 else None
    if mode != "constant" or value not in (None, 0, 0.0) or len(amounts) != 4:
        return False
    left, right, top, bottom = amounts
    return bool(left == right and top == bottom)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"


#: In the order in which they are applied.
PASSES: tuple[Pass, ...] = (remove_no_ops, fold_batch_norm, fold_padding, add_missing_biases)
