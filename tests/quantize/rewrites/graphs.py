"""Small programs for the rewrites' tests: prepared, rewritten, exported anew, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from edgekit import quality
from edgekit.quantize import graph, rewrites
from edgekit.quantize.graph import ATEN
from edgekit.quantize.prepare import as_module, export_program, prepare, re_export, run
from edgekit.quantize.rewrites import edit


def program(module: nn.Module, *inputs: torch.Tensor) -> fx.GraphModule:
    """The prepared program of a model, as rewrites get it."""
    exported, _ = prepare(export_program(module.eval(), inputs), inputs)
    return as_module(exported)


def rewritten(
    gm: fx.GraphModule, name: str, *inputs: torch.Tensor
) -> tuple[int, fx.GraphModule, float]:
    """How many places a rewrite changed, the program that it gives, and the worst output's dB.

    ``gm`` itself must come out unharmed, and a second application must find nothing.
    """
    before = run(gm, inputs)
    copied = edit.copy_graph(gm)
    count = rewrites.apply(copied, [name])[name]
    assert all(torch.equal(a, b) for a, b in zip(before, run(gm, inputs), strict=True))
    assert (name in rewrites.applicable(gm)) == (count > 0)
    result = as_module(re_export(copied, inputs))
    assert name not in rewrites.applicable(result), "nothing is left to rewrite"
    pairs = zip(before, run(result, inputs), strict=True)
    return count, result, min(quality.sqnr_db(a.numpy(), b.numpy()) for a, b in pairs)


def targets(gm: fx.GraphModule) -> list[object]:
    return [node.target for node in gm.graph.nodes if node.op == "call_function"]


class Builder:
    """A program built node by node: much faster than exporting a module.

    Every value is (1, ``channels``, ``size``, ``size``) or what was made of one.
    """

    def __init__(self, channels: int, size: int, seed: int = 0) -> None:
        self._random = torch.Generator().manual_seed(seed)
        self.example = self.normal(1, channels, size, size) * 3
        drawn = fx.Graph()
        self.input = drawn.placeholder("x")
        self.input.meta["val"] = self.example.to("meta")
        drawn.output((self.input,))
        self.gm = fx.GraphModule(nn.Module(), drawn)

    def _output(self) -> fx.Node:
        return self.gm.graph.output_node()

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._random)

    def call(self, target: Any, *args: Any) -> fx.Node:
        output = self._output()
        return edit.insert(self.gm, output, target, *args)

    def constant(self, value: torch.Tensor) -> fx.Node:
        output = self._output()
        node = graph.add_constant(self.gm, "constant", value, output)
        node.meta["val"] = value.to("meta")
        return node

    def conv(self, source: fx.Node, channels: int | None = None, *, bias: bool = True) -> fx.Node:
        """A 1x1 convolution to ``channels`` (default: as many as there are)."""
        given = source.meta["val"].shape[1]
        weight = self.constant(self.normal(channels or given, given, 1, 1))
        shift = self.constant(self.normal(channels or given)) if bias else None
        return self.call(ATEN.conv2d.default, source, weight, shift)

    def squeeze_excite(self, source: fx.Node, ratio: int = 2) -> fx.Node:
        channels = source.meta["val"].shape[1]
        pooled = self.call(ATEN.adaptive_avg_pool2d.default, source, [1, 1])
        reduced = self.call(ATEN.relu.default, self.conv(pooled, max(1, channels // ratio)))
        gate = self.call(ATEN.hardsigmoid.default, self.conv(reduced, channels))
        return self.call(ATEN.mul.Tensor, source, gate)

    def finish(self, *outputs: fx.Node) -> fx.GraphModule:
        output = self._output()
        output.args = (outputs,)
        self.gm.graph.eliminate_dead_code()
        self.gm.recompile()
        return self.gm


def compare(gm: fx.GraphModule, names: Sequence[str], example: torch.Tensor) -> dict[str, int]:
    """Rewrite a copy of a built program; checks that it computes the same, and ``gm`` too."""
    before = run(gm, (example,))
    copied = edit.copy_graph(gm)
    changed = rewrites.apply(copied, names)
    for value, other, untouched in zip(
        before, run(copied, (example,)), run(gm, (example,)), strict=True
    ):
        assert torch.equal(value, untouched)
        assert quality.sqnr_db(value.numpy(), other.numpy()) > 100
    assert not any(rewrites.apply(copied, names).values()), "nothing is left to rewrite"
    return changed
