"""Linear layers on the last axis of a permuted feature map, as 1x1 convolutions of the map itself.

ConvNeXt permutes to channels last, normalises, applies linear layers and permutes back. XNNPACK
computes convolutions channels last anyway, and pays for every permutation that the program asks
for; written as convolutions, a block needs none of them and is one piece.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN
from edgekit.quantize.rewrites import edit
from edgekit.quantize.rewrites.layer_norms import arguments, fold_into

_TO_LAST, _TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
_ELEMENTWISE = (
    ATEN.relu.default,
    ATEN.relu6.default,
    ATEN.hardtanh.default,
    ATEN.gelu.default,
    ATEN.silu.default,
    ATEN.sigmoid.default,
    ATEN.hardswish.default,
    ATEN.hardsigmoid.default,
    ATEN.tanh.default,
)


def apply(gm: fx.GraphModule) -> int:
    """Rewrite each chain of layer norms, linear layers and elementwise operators between the two
    permutations. Means over channels become ``aten.convolution``, which no quantizer may take.

    Exact up to float rounding.
    """
    changed = 0
    for node in list(gm.graph.nodes):
        chain = _chain(gm, node) if _permutes(node, _TO_LAST) else []
        if not any(link.target in (*graph.LINEARS, ATEN.layer_norm.default) for link in chain):
            continue
        value = node.args[0]
        norm: _Affine = None
        for link in chain:
            value, norm = _rewrite(gm, link, value, norm)
        if norm is not None:
            value = _spell_out(gm, chain[-1], value, norm)
        (last,) = chain[-1].users
        edit.replace(last, value)
        for link in reversed([node, *chain]):
            gm.graph.erase_node(link)
        changed += 1
    return changed


#: Factors and summands per channel that are still to be applied.
_Affine = tuple[torch.Tensor, torch.Tensor | None] | None


def _permutes(node: fx.Node, order: list[int]) -> bool:
    return node.target == ATEN.permute.default and list(node.args[1]) == order  # type: ignore


def _chain(gm: fx.GraphModule, start: fx.Node) -> list[fx.Node]:
    """What happens between the two permutations; empty where anything else has a part in it."""
    chain: list[fx.Node] = []
    node = start
    while len(node.users) == 1:
        (node,) = node.users
        if _permutes(node, _TO_FIRST):
            return chain
        if not _is_link(gm, node):
            return []
        chain.append(node)
    return []


def _is_link(gm: fx.GraphModule, node: fx.Node) -> bool:
    # A bias that is computed could not be told from one that there is not.
    computed = [arg for arg in node.args[2:] if isinstance(arg, fx.Node) and arg.op != "get_attr"]
    if node.target == ATEN.layer_norm.default:
        sizes: Any = node.args[1]
        return len(sizes) == 1 and not computed
    if node.target in graph.LINEARS and computed:
        return False
    linear = node.target in graph.LINEARS and edit.layer_weight(gm, node) is not None
    return linear or node.target in _ELEMENTWISE


def _rewrite(gm: fx.GraphModule, link: fx.Node, value: Any, norm: _Affine) -> tuple[Any, _Affine]:
    """One link of the chain on a channels-first ``value`` that ``norm`` is still owed."""
    if link.target in graph.LINEARS:
        weight, bias = edit.layer_weight(gm, link), edit.layer_bias(gm, link)
        assert weight is not None
        kernel = _constant(gm, link, weight[:, :, None, None])
        shift = None if bias is None else _constant(gm, link, bias)
        made = edit.insert(gm, link, ATEN.conv2d.default, value, kernel, shift)
        if norm is not None:
            fold_into(gm, made, *norm)
        return made, None
    if norm is not None:
        value = _spell_out(gm, link, value, norm)
    if link.target != ATEN.layer_norm.default:
        return edit.insert(gm, link, link.target, value, *link.args[1:], **link.kwargs), None
    weight_node, bias_node, eps = arguments(link)
    weight, bias = graph.constant(gm, weight_node), graph.constant(gm, bias_node)
    if weight is None and bias is not None:
        weight = torch.ones_like(bias)
    normed = _normalised(gm, link, value, eps)
    return normed, None if weight is None else (weight, bias)


def _normalised(gm: fx.GraphModule, link: fx.Node, value: Any, eps: float) -> fx.Node:
    channels = value.meta["val"].shape[1]
    kernel = _constant(gm, link, torch.full((1, channels, 1, 1), 1 / channels))

    def mean(of: Any, shift: fx.Node | None) -> fx.Node:
        geometry = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
        return edit.insert(gm, link, ATEN.convolution.default, of, kernel, shift, *geometry)

    centred = edit.insert(gm, link, ATEN.sub.Tensor, value, mean(value, None))
    squares = edit.insert(gm, link, ATEN.pow.Tensor_Scalar, centred, 2)
    variance = mean(squares, _constant(gm, link, torch.tensor([eps])))
    deviation = edit.insert(gm, link, ATEN.sqrt.default, variance)
    return edit.insert(gm, link, ATEN.div.Tensor, centred, deviation)


def _spell_out(gm: fx.GraphModule, before: fx.Node, value: Any, norm: _Affine) -> fx.Node:
    assert norm is not None
    factors, summands = (None if part is None else part.view(-1, 1, 1) for part in norm)
    assert factors is not None
    made = edit.insert(gm, before, ATEN.mul.Tensor, value, _constant(gm, before, factors))
    if summands is None:
        return made
    return edit.insert(gm, before, ATEN.add.Tensor, made, _constant(gm, before, summands))


def _constant(gm: fx.GraphModule, before: fx.Node, value: torch.Tensor) -> fx.Node:
    return graph.add_constant(gm, f"{before.name}_constant", value.contiguous(), before)
