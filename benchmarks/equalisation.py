"""What cross-layer equalisation would give before the repair ladder, which is why it is no rung.

python -m benchmarks.equalisation [PROJECT] [--json] [--quick]

Channels of a tensor that only layers write and read can be scaled freely: what writes them is
divided, what reads them is multiplied ("Data-Free Quantization Through Weight Equalization and Bias
Correction", Nagel et al., 2019, section 4.1). Weights that are quantized per channel gain nothing
by it, so here the ranges of the activations are made alike, which share one scale: over chains of
layers, ReLUs and pools and over residual sums, with every layer that writes or reads such a stream.
Strength 1 makes all channels' ranges equal, 0.5 goes half the way. The other rungs follow.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks.common import Report, argument_parser, conditions, finish
from benchmarks.engine import EXAMPLE, Engine, prepared

if TYPE_CHECKING:
    import torch
    from torch import fx

    from edgekit.quantize.graph import Layer
    from edgekit.types import RungResult

STRENGTHS = (0.0, 0.5, 1.0)
_RUNGS = ("bias_correction", "hessian_rounding")
_NEVER_ENOUGH = -1.0
#: Calibration samples that the channels' ranges are taken from.
_SAMPLES = 24
#: A channel counts as no smaller than this share of the largest: some are never used.
_LEAST = 1e-3


@dataclass
class Stream:
    """Tensors whose channels have to be scaled alike, with the layers that write and read them."""

    tensors: list[fx.Node] = field(default_factory=list)
    writers: list[Layer] = field(default_factory=list)
    readers: list[Layer] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> int:
    parser = argument_parser("equalisation", (__doc__ or "").splitlines()[0])
    parser.add_argument("project", nargs="?", type=Path, default=EXAMPLE)
    given = parser.parse_args(arguments)
    strengths = STRENGTHS[:2] if given.quick else STRENGTHS
    before = conditions("torch")
    found = {}
    with TemporaryDirectory(prefix="equalisation-") as name:
        engine = prepared(given.project, Path(name) / "prepared")
        for strength in strengths:
            folder = Path(name) / str(strength)
            shutil.copytree(engine.folder, folder)
            count = equalise(folder, engine, strength) if strength else 0
            there = Engine(folder, engine.calibration, engine.choose)
            found[strength] = count, there.repair(f"strength {strength}", _RUNGS, _NEVER_ENOUGH)
    return finish(report(found, before), as_json=given.json, quick=given.quick)


def report(
    found: dict[float, tuple[int, tuple[RungResult, ...]]], before: dict[str, str]
) -> Report:
    """The table; it has no bar."""
    rungs = [rung.rung for rung in found[0.0][1]]
    rows = [
        (f"{strength:g}", str(count), *(f"{rung.sqnr_db:.2f} dB" for rung in ladder))
        for strength, (count, ladder) in found.items()
    ]
    return Report(
        name="equalisation",
        columns=("strength", "streams", *rungs),
        rows=rows,
        bars=[],
        notes=("SQNR simulated on the evaluation set, with all rungs to the left.",),
        conditions=before,
    )


def equalise(folder: Path, engine: Engine, strength: float) -> int:
    """Rewrites the program in ``folder``; returns how many streams were equalised."""
    import torch

    from edgekit import quality
    from edgekit.quantize import graph
    from edgekit.quantize.engine import PROGRAM, samples
    from edgekit.quantize.prepare import as_module, run, with_constants

    exported = torch.export.load(folder / PROGRAM)
    gm = as_module(exported)
    some = list(samples(engine.calibration, _SAMPLES))
    wanted = run(gm, some[0])
    ranges = _channel_ranges(gm, some)
    count = 0
    for stream in streams(gm):
        found = [ranges[node] for node in stream.tensors if node in ranges]
        if not found or len({len(one) for one in found}) != 1:
            continue
        largest = torch.stack(found).amax(0)
        largest = largest.clamp_min(_LEAST * float(largest.max()))
        _scale(gm, stream, (largest / largest.log().mean().exp()) ** strength)
        count += 1
    names = {name for layer in graph.layers(gm) for name in (layer.weight, layer.bias) if name}
    changed = with_constants(exported, {name: graph.attribute(gm, name) for name in names})
    for old, new in zip(wanted, run(changed, some[0]), strict=True):
        if old.is_floating_point() and quality.sqnr_db(old.numpy(), new.numpy()) < 90:
            raise RuntimeError("equalisation changed what the program computes")
    torch.export.save(changed, folder / PROGRAM)
    return count


def streams(gm: fx.GraphModule) -> Iterator[Stream]:
    """Those whose channels can be scaled: all that writes and reads them is a layer, or does the
    same to a scaled channel as to the channel."""
    from edgekit.quantize import graph
    from edgekit.quantize.graph import ATEN

    keeps = (ATEN.relu.default, ATEN.max_pool2d.default, ATEN.adaptive_avg_pool2d.default)
    layers = {layer.node: layer for layer in graph.layers(gm)}
    group: dict[fx.Node, set[fx.Node]] = {}
    fixed: set[fx.Node] = set()
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            continue
        group[node] = {node}
        sources = [source for source in node.all_input_nodes if source.op != "get_attr"]
        joined: list[fx.Node] = []
        if node in layers:
            if "transpose" in str(node.target) or node.meta["val"].dim() != 4:
                fixed |= {node, *sources}
        elif node.target in keeps:
            joined = sources
        elif node.target in graph.ADDITIONS and len({n.meta["val"].shape for n in sources}) == 1:
            # A constant among the operands would have to be scaled too.
            joined = sources if sources == list(node.args[:2]) else []
            fixed |= set() if joined else {node, *sources}
        else:
            fixed |= {node, *sources}
        for other in joined:
            merged = group[node] | group[other]
            for member in merged:
                group[member] = merged
    for members in {id(found): found for found in group.values()}.values():
        if members & fixed:
            continue
        stream = Stream(
            tensors=sorted(members, key=lambda node: node.name),
            writers=[layers[node] for node in members if node in layers],
            readers=[x for x in layers.values() if x.node.args[0] in members],
        )
        if stream.writers and stream.readers:
            yield stream


def _channel_ranges(
    gm: fx.GraphModule, some: list[tuple[torch.Tensor, ...]]
) -> dict[fx.Node, torch.Tensor]:
    """The largest magnitude of each channel, shape (channels,), of all maps of features."""
    import torch

    from edgekit.quantize.simulate import Values, run_samples

    found = {}

    def observe(node: fx.Node, values: Values) -> Values:
        if isinstance(values[0], torch.Tensor) and values[0].dim() == 4:
            found[node] = torch.stack([value.abs().amax((0, 2, 3)) for value in values]).amax(0)
        return values

    run_samples(gm, some, observe)
    return found


def _scale(gm: fx.GraphModule, stream: Stream, scale: torch.Tensor) -> None:
    """Divides the channels of a stream by ``scale``, shape (channels,)."""
    from edgekit.quantize import graph

    for layer in stream.writers:
        weight = graph.attribute(gm, layer.weight)
        shape = [-1 if axis == layer.channel_axis else 1 for axis in range(weight.dim())]
        graph.set_attribute(gm, layer.weight, weight / scale.view(shape))
        if layer.bias:
            graph.set_attribute(gm, layer.bias, graph.attribute(gm, layer.bias) / scale)
    for layer in stream.readers:
        weight = graph.attribute(gm, layer.weight)
        # Each group of output channels reads its own input channels.
        groups, inputs = len(scale) // weight.shape[1], weight.shape[1]
        grouped = weight.view(groups, -1, *weight.shape[1:])
        factor = scale.view(groups, 1, inputs, *[1] * (weight.dim() - 2))
        graph.set_attribute(gm, layer.weight, (grouped * factor).view_as(weight))


if __name__ == "__main__":
    sys.exit(main())
