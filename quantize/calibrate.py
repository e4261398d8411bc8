"""One calibration for all runtimes: the range of every activation of the prepared program.

Two passes over the calibration samples, one sample in memory at a time: the first finds minimum and
maximum, the second fills a histogram between them, from which the range with the least expected
squared error is searched. Both ranges are kept, so a recipe can take either.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from edgekit.errors import DataError
from edgekit.files import write_atomic
from edgekit.quantize import graph

BINS = 2048
_LEVELS = 255
#: Larger magnitudes are masks, made of infinity or of the largest float32.
_BOUND = float(torch.finfo(torch.float32).max) / 2
#: Candidate end points on each side of zero, as shares of the observed extreme.
_SHRINK = np.linspace(1.0, 0.05, 96)

Samples = Callable[[], Iterable[tuple[torch.Tensor, ...]]]


@dataclass(frozen=True)
class Range:
    """The observed extremes of a tensor and the clipping range with the least squared error.

    All four are in the tensor's own unit; both ranges contain zero, which int8 must represent.
    """

    minimum: float
    maximum: float
    low: float
    high: float

    def of(self, kind: str) -> tuple[float, float]:
        """``"minmax"`` or ``"histogram"``, as in :class:`edgekit.types.Recipe`."""
        return (self.minimum, self.maximum) if kind == "minmax" else (self.low, self.high)


def calibrate(gm: fx.GraphModule, samples: Samples) -> dict[str, Range]:
    """Ranges by node name, for every float tensor that the program computes.

    Args:
        gm: the prepared program.
        samples: called twice; gives the model's input tuples.

    Raises:
        DataError: no samples, or a tensor with NaN values. Infinite ones, of which masks are made,
            are left out: an int8 range cannot hold them.
    """
    extremes = _Extremes(gm)
    with torch.inference_mode():
        for inputs in samples():
            extremes.run(*inputs)
            extremes.sample += 1
        if extremes.sample == 0:
            raise DataError("The calibration set is empty.", remedy="Pass real samples to --calib.")
        histograms = _Histograms(gm, extremes.low, extremes.high)
        for inputs in samples():
            histograms.run(*inputs)
    ranges = {}
    for name, low in extremes.low.items():
        high = extremes.high[name]
        best = least_error_range(
            histograms.counts[name].numpy(), low, high, zeros=histograms.zeros[name]
        )
        ranges[name] = Range(min(low, 0.0), max(high, 0.0), *best)
    for node in gm.graph.nodes:
        # What only moves values has the range of what it moves.
        if node.name in ranges and node.target in graph.SAME_VALUES:
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
    return {name: (low, extremes.high[name]) for name, low in extremes.low.items()}


def save_ranges(path: Path, ranges: Mapping[str, Range]) -> None:
    """Write ranges as JSON, keyed by node name."""
    document = {name: asdict(value) for name, value in ranges.items()}
    write_atomic(path, json.dumps(document, indent=1, sort_keys=True, allow_nan=False))


def load_ranges(path: Path) -> dict[str, Range]:
    """Read what :func:`save_ranges` wrote."""
    return {name: Range(**value) for name, value in json.loads(path.read_text()).items()}


def least_error_range(
    counts: np.ndarray, low: float, high: float, *, zeros: float = 0.0
) -> tuple[float, float]:
    """The clipping range that minimises the expected squared error of 8-bit affine quantization.

    Rounding costs step^2/12 for each value inside the range, except for exact zeros (the many that
    a ReLU makes), which int8 represents exactly; clipping costs the squared distance.

    Args:
        counts: shape (bins,), the histogram over [low, high].
        low, high: the observed extremes.
        zeros: how many of the counted values are exactly zero.
    """
    outer_low, outer_high = min(low, 0.0), max(high, 0.0)
    if outer_high - outer_low <= 0:
        return outer_low, outer_high
    edges = np.linspace(low, high, len(counts) + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    moments = [np.concatenate([[0.0], np.cumsum(counts * centres**power)]) for power in range(3)]
    lows = outer_low * _SHRINK if outer_low < 0 else np.zeros(1)
    highs = outer_high * _SHRINK if outer_high > 0 else np.zeros(1)
    below = np.searchsorted(centres, lows)
    above = np.searchsorted(centres, highs)

    def clip_cost(sums: Sequence[Any], at: Any) -> Any:
        count, first, second = sums
        return second - 2 * at * first + at**2 * count

    clipped_low = clip_cost([m[below] for m in moments], lows)
    clipped_high = clip_cost([m[-1] - m[above] for m in moments], highs)
    inside = moments[0][above][None, :] - moments[0][below][:, None] - zeros
    step = (highs[None, :] - lows[:, None]) / _LEVELS
    cost = clipped_low[:, None] + clipped_high[None, :] + np.maximum(inside, 0) * step**2 / 12
    cost[step <= 0] = np.inf
    row, column = np.unravel_index(int(np.argmin(cost)), cost.shape)
    return float(lows[row]), float(highs[column])


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
        self, gm: fx.GraphModule, low: Mapping[str, float], high: Mapping[str, float]
    ) -> None:
        super().__init__(gm)
        self._low, self._high = low, high
        self._shared = {n.name for n in gm.graph.nodes if n.target in graph.SAME_VALUES}
        self.counts = {name: torch.zeros(BINS) for name in low}
        self.zeros = dict.fromkeys(low, 0.0)

    def observe(self, name: str, value: torch.Tensor) -> None:
        if name in self._shared:
            return
        low, high = self._low[name], self._high[name]
        if high > low:
            self.counts[name] += torch.histc(value.float(), BINS, low, high)
            self.zeros[name] += float((value == 0).sum())
