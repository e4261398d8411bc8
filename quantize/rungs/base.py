"""What a rung of the repair ladder is given and may change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import fx

from edgekit import quality
from edgekit.data import SampleSet
from edgekit.quantize import graph, outliers
from edgekit.quantize.float_nodes import linear_layers
from edgekit.quantize.memory import affordable, live_bytes, output_bytes
from edgekit.quantize.outliers import Apart, Split
from edgekit.quantize.prepare import as_module, flatten
from edgekit.quantize.ranges import Range
from edgekit.quantize.simulate import (
    Grid,
    Values,
    activation_grids,
    simulate,
    simulate_dynamic,
)
from edgekit.types import Metric, RangeKind

#: Samples that are simulated at once.
_CHUNK = 8
#: A set is judged on at most so many samples, spread evenly over it.
MAX_JUDGED = 256
#: The part of the budget that is aimed at, for drops that measure a distance: a file errs some per
#: cent more than the simulation of it. Drops that count samples come in steps that are larger.
_AIM = 0.9

Sample = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Quality:
    """Of the worst output: SQNR in dB, and the drop (0..1) by the metric of the evaluation set."""

    sqnr_db: float
    drop: float


class Judge(Protocol):
    """Simulates the quantized program on the evaluation set."""

    def __call__(self, work: Work, limit: int = MAX_JUDGED) -> Quality: ...


@dataclass
class Work:
    """A quantized program in the making.

    ``reference`` is the float program and stays as it is, ``exported`` what it was made of.
    ``program`` is the same graph, whose weights and biases rungs replace. All three change their
    graph together, and only by :meth:`take_apart`; ``apart`` is what was taken apart. ``ranges``
    are those of the calibration, of which ``kind`` is in use; ``float_nodes`` are nodes that no
    runtime may quantize. ``calibration`` gives at most so many samples spread over the set,
    ``training`` the user's training samples, if there are any; ``judge`` measures; ``max_drop`` is
    the drop that is aimed at. ``notes`` is a folder for what is worth keeping between runs,
    whatever their budget. With ``dynamic``, only linear layers are quantized, and the grids of
    their inputs are made at run time. ``added_ns`` is what float layers cost one inference on this
    host.
    ``channel_means`` are the reference's, once bias correction has needed them.
    """

    exported: torch.export.ExportedProgram
    reference: fx.GraphModule
    program: fx.GraphModule
    ranges: Mapping[str, Range]
    kind: RangeKind
    dtype: str
    float_nodes: frozenset[str]
    calibration: Callable[[int], list[Sample]]
    judge: Judge
    max_drop: float
    notes: Path
    dynamic: bool = False
    training: Callable[[], list[Sample]] = list
    added_ns: int = 0
    channel_means: dict[str, torch.Tensor] | None = None
    apart: Apart | None = None

    def __post_init__(self) -> None:
        self._whole = self.exported

    def take_apart(self, apart: Apart | None) -> Split:
        """Have these channels of the float program computed apart, or none.

        The weights and biases are the float ones again, and ``float_nodes`` is the caller's task.
        """
        split = Split(self._whole, {}, frozenset())
        if apart is not None:
            split = outliers.split(self._whole, apart, self.calibration(1)[0])
        self.exported, self.apart = split.exported, apart
        self.reference, self.program = as_module(self.exported), as_module(self.exported)
        self.channel_means = None
        return split

    @property
    def grids(self) -> dict[str, Grid]:
        """The activation grids in force, by node name; none where they are made at run time."""
        if self.dynamic:
            return {}
        return activation_grids(
            self.reference,
            self.ranges,
            self.kind,
            dtype=self.dtype,
            float_nodes=self.float_nodes,
        )

    @property
    def float_layers(self) -> frozenset[str]:
        """Names of nodes that are not rounded, among them all layers whose weights are not."""
        if not self.dynamic:
            return self.float_nodes
        every = {layer.name for layer in graph.layers(self.reference)}
        return self.float_nodes | (every - linear_layers(self.reference, self.float_nodes))

    def simulate(self, samples: list[Sample]) -> list[Values]:
        """The outputs of the quantized program, a flat list per sample."""
        if self.dynamic:
            quantized = linear_layers(self.reference, self.float_nodes)
            return simulate_dynamic(self.program, samples, quantized)
        return simulate(self.program, samples, self.grids, self.float_nodes)

    def constants(self) -> dict[str, torch.Tensor]:
        """The weights and biases of all layers, by name."""
        names = {name for x in graph.layers(self.program) for name in (x.weight, x.bias) if name}
        return {name: graph.attribute(self.program, name).clone() for name in names}

    def install(self, constants: Mapping[str, torch.Tensor]) -> None:
        """Put weights and biases in place."""
        for name, value in constants.items():
            graph.set_attribute(self.program, name, value)


class SimulatedJudge:
    """Judges by simulation; what the float program gives is computed once."""

    def __init__(self, reference: fx.GraphModule, choose: SampleSet, metric: Metric | None) -> None:
        self._reference, self._choose, self._metric = reference, choose, metric
        self._kept = spread(choose.n, affordable(output_bytes(reference), MAX_JUDGED))
        self._chunk = affordable(live_bytes(reference), _CHUNK)
        self._labels = None if choose.labels is None else np.asarray(choose.labels)[self._kept]

    @cached_property
    def _float(self) -> list[np.ndarray]:
        chunks = [
            [list(flatten(self._reference(*sample))) for sample in chunk]
            for chunk in self._chunks(self._kept)
        ]
        return _stacks([values for chunk in chunks for values in chunk])

    @property
    def metric(self) -> Metric:
        """The metric of the drop, picked by the labels and outputs where none was given."""
        return self._metric or quality.pick_metric(self._labels, self._float)

    def aim(self, max_drop: float) -> float:
        """The simulated drop at which files keep the budget, as far as that can be told."""
        return max_drop if self.metric in ("top1", "agreement") else _AIM * max_drop

    def __call__(self, work: Work, limit: int = MAX_JUDGED) -> Quality:
        positions = spread(len(self._kept), limit)
        given: list[Values] = []
        for chunk in self._chunks([self._kept[i] for i in positions]):
            given += work.simulate(chunk)
        outputs = _stacks(given)
        wanted = [stack[positions] for stack in self._float]
        labels = None if self._labels is None else self._labels[positions]
        pairs = list(zip(wanted, outputs, strict=True))
        # Integers are compared as numbers where there is nothing else.
        floats = [pair for pair in pairs if pair[0].dtype.kind == "f"] or pairs
        return Quality(
            sqnr_db=min(quality.sqnr_db(a, b) for a, b in floats),
            drop=quality.metric_drop(self.metric, wanted, outputs, labels),
        )

    def _chunks(self, indices: Sequence[int]) -> Iterator[list[Sample]]:
        for start in range(0, len(indices), self._chunk):
            with torch.inference_mode():
                yield [sample_at(self._choose, i) for i in indices[start : start + self._chunk]]


def spread(count: int, limit: int) -> list[int]:
    """At most ``limit`` of so many positions, evenly spread."""
    taken = min(count, limit)
    return [index * count // taken for index in range(taken)]


def sample_at(source: SampleSet, index: int) -> Sample:
    """The inputs of one sample, with batch dimension."""
    return tuple(torch.from_numpy(np.array(array[index])) for array in source.inputs)


def _stacks(values: Sequence[Sequence[torch.Tensor]]) -> list[np.ndarray]:
    return [np.stack([v.detach().numpy() for v in column]) for column in zip(*values, strict=True)]
