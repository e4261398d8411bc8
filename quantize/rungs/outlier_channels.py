"""Outlier channels: the few that dwarf the others of a layer's input are multiplied in float.

For dynamic INT8, which gives an input one scale by its extremes: see
:mod:`edgekit.quantize.outliers`.
"""

from __future__ import annotations

from edgekit.quantize.equal import prove_equal
from edgekit.quantize.float_nodes import linear_layers
from edgekit.quantize.outliers import CHANNELS, Apart, find
from edgekit.quantize.prepare import as_module, run
from edgekit.quantize.rewrites import edit
from edgekit.quantize.rungs.base import Work
from edgekit.quantize.rungs.float_layers import layer_times_ns

#: Calibration samples in which outliers are looked for.
SAMPLES = 16
#: Samples on which both programs have to give the same.
_CHECKED = 4


def apply(work: Work) -> str:
    """Change the graph of ``work``; its float nodes get the names that they have there."""
    linear = linear_layers(work.reference, work.float_nodes)
    # A bias that is computed cannot be taken along.
    layers = {
        node.name
        for node in work.reference.graph.nodes
        if node.name in linear and edit.layer_weight(work.reference, node) is not None
    }
    samples = work.calibration(SAMPLES)
    found = find(work.reference, samples, layers)
    if not found:
        return ""
    whole = work.exported
    split = work.take_apart(Apart(found, tuple(sorted(layers))))
    work.float_nodes = frozenset(split.names[n] for n in work.float_nodes) | split.added
    checked = samples[:_CHECKED]
    names = [f"output {i}" for i in range(len(run(whole, checked[0])))]
    before, after = as_module(whole), as_module(work.exported)
    prove_equal(before, after, checked, names, "taking outlier channels apart")
    times = layer_times_ns(work.reference, samples[0])
    work.added_ns += sum(times[name] for name in split.added if name in times)
    return f"{CHANNELS} channels of {len(found)} activations"
