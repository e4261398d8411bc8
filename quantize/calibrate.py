"""One calibration for all runtimes: the range of every activation of the prepared program.

Two passes over the calibration samples, one sample in memory at a time: the first finds minimum and
maximum, the second fills a histogram between them, from which :mod:`edgekit.quantize.ranges` makes
ranges of every kind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import fx

from edgekit.errors import DataError
from edgekit.quantize.pads import moving, pads_beyond
from edgekit.quantize.ranges import Range, find_ranges

BINS = 2048
#: Larger magnitudes are masks, made of infinity or of the largest float32.
_BOUND = float(torch.finfo(torch.float32).max) / 2

Samples = Callable[[], Iterable[tuple[torch.Tensor, ...]]]


def calibrate(
    gm: fx.GraphModule, samples: Samples, *, advance: Callable[[], object] = lambda: None
) -> dict[str, Range]:
    """Ranges by node name, for every float tensor that the program computes.

    Args:
        gm: the prepared program.
        samples: called twice; gives the model's input tuples.
        advance: called after each sample of both passes.

    Raises:
        DataError: no samples, or a tensor with NaN values. Infinite ones, of which masks are made,
            are left out: an int8 range cannot hold them.
    """
    extremes = _Extremes(gm)
    with torch.inference_mode():
        for inputs in samples():
            extremes.run(*inputs)
            extremes.sample += 1
            advance()
        if extremes.sample == 0:
            raise DataError("The calibration set is empty.", remedy="Pass real samples to --calib.")
        shared = moving(gm, pads_beyond(gm, extremes.found()))
        histograms = _Histograms(gm, extremes.low, extremes.high, shared)
        for inputs in samples():
            histograms.run(*inputs)
            advance()
    ranges = {}
    for name, low in extremes.low.items():
        high = extremes.high[name]
        counts = histograms.counts[name].numpy()
        ranges[name] = find_ranges(counts, low, high, zeros=histograms.zeros[name])
    for node in gm.graph.nodes:
        # What only moves values has the range of what it moves.
        if node.name in ranges and node.name in shared:
            # Constants have no range of their own; what is made of them keeps the observed one.
            ranges[node.name] = ranges.get(node.args[0].name, ranges[node.name])
    return ranges


def extremes_of_sample(
    gm: fx.GraphModule, inputs: tuple[torch.Tensor, ...]
) -> dict[str, tuple[float, float]]:
    """Minimum and maximum by node name, for one sample."""
    extremes = _Extremes(gm)
    with torch.inference_mode():
        extremes.run(*inputs)
    return extremes.found()


class _Observer(fx.Interpreter):
    """Runs the program and shows every float tensor to :meth:`observe`."""

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if (
            n.op in ("placeholder", "call_function")
            and isinstance(value, torch.Tensor)
            and value.is_floating_point()
            and value.numel()
        ):
            self.observe(n.name, value)
        return value

    def observe(self, name: str, value: torch.Tensor) -> None:
        raise NotImplementedError


class _Extremes(_Observer):
    """The finite extremes by node name; zero for a tensor that never has a finite value."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.sample = 0
        self.low: dict[str, float] = {}
        self.high: dict[str, float] = {}

    def found(self) -> dict[str, tuple[float, float]]:
        return {name: (low, self.high[name]) for name, low in self.low.items()}

    def observe(self, name: str, value: torch.Tensor) -> None:
        low, high = (float(v) for v in torch.aminmax(value))
        if math.isnan(low):
            raise DataError(
                f"The float model gives NaN on the calibration set, first at {name!r} on sample "
                f"{self.sample} (counted from 0).",
                remedy="Check that sample and its preprocessing.",
            )
        if low < -_BOUND or high > _BOUND:
            finite = value[value.abs() <= _BOUND]
            low, high = (float(v) for v in torch.aminmax(finite)) if finite.numel() else (0.0, 0.0)
        self.low[name] = min(self.low.get(name, low), low)
        self.high[name] = max(self.high.get(name, high), high)


class _Histograms(_Observer):
    def __init__(
        self,
        gm: fx.GraphModule,
        low: Mapping[str, float],
        high: Mapping[str, float],
        shared: Collection[str],
    ) -> None:
        """``shared`` are named whose range is that of their input."""
        super().__init__(gm)
        self._low, self._high, self._shared = low, high, shared
        self.counts = {name: torch.zeros(BINS) for name in low}
        self.zeros = dict.fromkeys(low, 0.0)

    def observe(self, name: str, value: torch.Tensor) -> None:
        if name in self._shared:
            return
        low, high = self._low[name], self._high[name]
        if high > low:
            self.counts[name] += torch.histc(value.float(), BINS, low, high)
            self.zeros[name] += value.numel() - int(value.count_nonzero())
