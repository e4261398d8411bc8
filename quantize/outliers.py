"""Outlier channels: which they are, and the program in which they are computed apart.

In trained transformers a few channels of some activations are many times as large as the rest, and
one int8 scale leaves the rest with a handful of steps ("LLM.int8()", Dettmers et al., 2022, which
computes such channels apart, too). Here they are wired into the program, so that every runtime can
do it with ordinary operators: a layer gets its input without them, and what they contribute is
added by two small float layers, of which the first picks the channels and is shared by all layers
with that input.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN
from edgekit.quantize.prepare import as_module, re_export
from edgekit.quantize.rewrites import edit

#: So many channels are taken out of an input, if they are outliers.
CHANNELS = 16
#: Without them the largest magnitude has to be smaller by this factor, else they are none.
_SHRINK = 1.5

Sample = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Apart:
    """Channels that are computed apart, by the name of the node whose last axis they lie on, for
    the linear layers of these names."""

    channels: Mapping[str, tuple[int, ...]]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Split:
    """A program with channels apart, the new names of its old nodes, and those of the added float
    layers."""

    exported: torch.export.ExportedProgram
    names: Mapping[str, str]
    added: frozenset[str]


def find(
    gm: fx.GraphModule, samples: Sequence[Sample], layers: Collection[str]
) -> dict[str, tuple[int, ...]]:
    """The outlier channels (last axis) of what these layers take in, by the name of that node."""
    peaks = _Peaks(gm, {str(x.node.args[0]) for x in graph.layers(gm) if x.name in layers})
    with torch.inference_mode():
        for sample in samples:
            peaks.run(*sample)
    found = {}
    for name, magnitudes in peaks.found.items():
        if len(magnitudes) <= 4 * CHANNELS:
            continue  # the two small layers would cost as much as they serve
        largest = magnitudes.topk(CHANNELS + 1)
        if largest.values[0] > _SHRINK * largest.values[-1]:
            found[name] = tuple(sorted(largest.indices[:-1].tolist()))
    return found


class _Peaks(fx.Interpreter):
    """Gathers the largest magnitude of each channel of some nodes, shape (channels,)."""

    def __init__(self, gm: fx.GraphModule, names: Collection[str]) -> None:
        super().__init__(gm)
        self._names = names
        self.found: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        value: object = super().run_node(n)
        if n.name in self._names and isinstance(value, torch.Tensor):
            peak = value.abs().reshape(-1, value.shape[-1]).amax(0)
            known = self.found.get(n.name)
            self.found[n.name] = peak if known is None else torch.maximum(known, peak)
        return value


def split(exported: torch.export.ExportedProgram, apart: Apart, example: Sample) -> Split:
    """Compute channels apart; ``exported`` stays as it is, ``example`` are input tensors."""
    gm = as_module(exported)
    old = [node for node in gm.graph.nodes if node.op == "call_function"]
    renamed = {node: node.name for node in old}
    chosen = [x.node for x in graph.layers(gm) if x.name in apart.layers]
    added: list[fx.Node] = []
    # Sorted, so that the same names come out whatever order a saved state has them in.
    for source, taken in sorted(apart.channels.items()):
        readers = [node for node in chosen if str(node.args[0]) == source]
        added += _split(gm, readers, list(taken))
    # Before names are settled anew, in the order in which nodes stay.
    order = [node for node in gm.graph.nodes if node.op == "call_function"]
    made = re_export(gm, example)
    now = [node for node in as_module(made).graph.nodes if node.op == "call_function"]
    assert [n.target for n in order] == [n.target for n in now], "exporting changed the graph"
    names = {node: new.name for node, new in zip(order, now, strict=True)}
    return Split(
        made,
        {renamed[node]: names[node] for node in old},
        frozenset(names[node] for node in added),
    )


def _split(gm: fx.GraphModule, readers: Sequence[fx.Node], taken: list[int]) -> list[fx.Node]:
    """Computes some channels of the readers' common input apart; returns the new layers."""
    first = readers[0]
    source = first.args[0]
    assert isinstance(source, fx.Node)
    weight = edit.layer_weight(gm, first)
    assert weight is not None
    kept = torch.ones(weight.shape[1], dtype=weight.dtype)
    kept[taken] = 0
    pick = torch.eye(weight.shape[1], dtype=weight.dtype)[taken]
    rest = edit.insert(
        gm, first, ATEN.mul.Tensor, source, graph.add_constant(gm, "kept", kept, first)
    )
    few = edit.insert(
        gm, first, ATEN.linear.default, source, graph.add_constant(gm, "pick", pick, first)
    )
    added = [few]
    for node in readers:
        weight = edit.layer_weight(gm, node)
        assert weight is not None
        apart = graph.add_constant(gm, f"{node.name}_apart", weight[:, taken], node)
        edit.set_weight(gm, node, weight * kept)
        node.update_arg(0, rest)
        side = edit.insert(gm, node.next, ATEN.linear.default, few, apart)
        total = edit.insert(gm, side.next, ATEN.add.Tensor, node, side)
        for user in [user for user in node.users if user is not total]:
            user.replace_input_with(node, total)
        added.append(side)
    return added
