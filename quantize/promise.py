"""What an artifact of a recipe has to hold, for the program that it is made of.

A recipe quantizes some of the multiply-accumulates (MACs) of a program and not others: dynamic
INT8 those of linear layers only, and no recipe those of the nodes that it leaves in float. What the
inspection of a finished file finds is held against that part, not against all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.float_nodes import dynamic_layers, float_closure
from edgekit.quantize.recipes import MIN_INT8_MAC_SHARE
from edgekit.quantize.torch_counter import CountingMode
from edgekit.types import Recipe


def promised_share(
    gm: fx.GraphModule, example: Sequence[torch.Tensor], recipe: Recipe
) -> float | None:
    """The least share (0..1) of an artifact's MACs that must be in int8; None without a promise.

    That of the MACs that the recipe quantizes in this program, times what
    :data:`edgekit.quantize.recipes.MIN_INT8_MAC_SHARE` asks of them.
    """
    of_quantized = MIN_INT8_MAC_SHARE.get(recipe.name)
    if of_quantized is None:
        return None
    macs = macs_by_node(gm, example)
    total = sum(macs.values())
    if not total:
        return of_quantized
    kept = float_closure(gm, recipe.float_nodes)
    if recipe.scheme == "dynamic":
        chosen = set(dynamic_layers(gm, recipe.float_nodes))
    elif recipe.name == "static_wi8_ai8":
        chosen = macs.keys() - kept
    else:
        # What counts are int8 weights, which products of two activations do not have.
        chosen = {layer.name for layer in graph.layers(gm)} - kept
    return of_quantized * sum(macs.get(name, 0) for name in chosen) / total


def macs_by_node(gm: fx.GraphModule, example: Sequence[torch.Tensor]) -> dict[str, int]:
    """MACs of one inference by node name, for the nodes that multiply."""
    counting = _Counting(gm)
    with torch.no_grad():
        counting.run(*example)
    return counting.macs


class _Counting(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.macs: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        mode = CountingMode()
        with mode:
            value = super().run_node(n)
        macs = sum(op.macs for op in mode.counts.ops)
        if macs:
            self.macs[n.name] = macs
        return value
