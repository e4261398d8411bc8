"""The layers whose INT8 form hurts most stay float, as few as the budget needs.

How much a layer hurts is measured with everything else quantized; what it costs is its float time
on this host, which bounds what INT8 could have saved. Layers are taken by gain per cost.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Collection, Mapping

import torch
from torch import fx

from edgekit.files import write_atomic
from edgekit.quality import within
from edgekit.quantize import graph
from edgekit.quantize.graph import Layer
from edgekit.quantize.rungs.base import Sample, Work

#: Evaluation samples on which the layers are ranked; each choice is judged on all.
_SAMPLES = 8
#: At most this share of the layers may stay float: beyond it, float is the better artifact.
_MAX_SHARE = 0.2
_TIMED_RUNS = 5


def apply(work: Work) -> str:
    """Extend ``work.float_nodes`` until the budget is kept, or nothing helps any more."""
    layers = [x for x in graph.layers(work.reference) if x.name not in work.float_layers]
    if not layers:
        return ""
    gains = _gains(work, layers)
    costs = layer_times_ns(work.reference, work.calibration(1)[0])
    order = sorted(layers, key=lambda x: gains[x.name] / costs[x.name], reverse=True)
    taken: list[str] = []
    best = work.judge(work)
    for layer in order[: max(1, int(len(layers) * _MAX_SHARE))]:
        if within(best.drop, work.max_drop) or gains[layer.name] <= 0:
            break
        undo = _make_float(work, layer)
        found = work.judge(work)
        if found.sqnr_db <= best.sqnr_db:
            undo()
            continue
        taken.append(layer.name)
        work.added_ns += costs[layer.name]
        best = found
    return f"float: {', '.join(taken)}" if taken else ""


def take(work: Work, names: Collection[str]) -> None:
    """Make the layers of these names float, as a saved recipe says."""
    for layer in graph.layers(work.reference):
        if layer.name in names and layer.name not in work.float_nodes:
            _make_float(work, layer)


def _make_float(work: Work, layer: Layer) -> Callable[[], None]:
    """Give a layer its float weights and bias back; returns what undoes it."""
    before = work.float_nodes
    names = [name for name in (layer.weight, layer.bias) if name]
    old = {name: graph.attribute(work.program, name).clone() for name in names}
    work.install({name: graph.attribute(work.reference, name) for name in names})
    work.float_nodes = before | {layer.name, layer.output.name}

    def undo() -> None:
        work.install(old)
        work.float_nodes = before

    return undo


def _gains(work: Work, layers: list[Layer]) -> dict[str, float]:
    """dB that the worst output gains with one layer in float; kept between runs."""
    path = work.notes / "sensitivities.json"
    state = _state(work)
    if path.is_file():
        known = json.loads(path.read_text())
        if known["of"] == state:
            return {name: float(gain) for name, gain in known["gains"].items()}
    all_int8 = work.judge(work, _SAMPLES).sqnr_db
    gains = {}
    for layer in layers:
        undo = _make_float(work, layer)
        gains[layer.name] = work.judge(work, _SAMPLES).sqnr_db - all_int8
        undo()
    write_atomic(path, json.dumps({"of": state, "gains": gains}, sort_keys=True))
    return gains


def _state(work: Work) -> str:
    """A hash over everything that the gains depend on."""
    settings = [work.kind, work.dtype, work.dynamic, sorted(work.float_nodes)]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name, value in sorted(work.constants().items()):
        digest.update(name.encode() + value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def layer_times_ns(gm: fx.GraphModule, sample: Sample) -> dict[str, int]:
    """Float time of each layer on this host in nanoseconds, the median of some runs."""
    times: dict[str, list[int]] = {layer.name: [] for layer in graph.layers(gm)}

    class Timed(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            started = time.perf_counter_ns()
            value: object = super().run_node(n)
            if n.name in times:
                times[n.name].append(time.perf_counter_ns() - started)
            return value

    with torch.inference_mode():
        for _ in range(_TIMED_RUNS):
            Timed(gm).run(*sample)
    return _medians(times)


def _medians(times: Mapping[str, list[int]]) -> dict[str, int]:
    return {name: max(1, int(statistics.median(values))) for name, values in times.items()}
