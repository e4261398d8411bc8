"""Activation ranges: the four ways of finding one from a histogram, and the file that keeps them.

``minmax`` keeps every value, ``percentile`` gives up one in ten thousand at each end, ``mse``
searches the range whose int8 grid has the least squared error on the histogram, and ``histogram``
does so with the expected rounding error, which is smoother where few samples were seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.files import write_atomic
from edgekit.types import RangeKind

#: In the order in which they are tried.
KINDS: tuple[RangeKind, ...] = ("histogram", "mse", "percentile", "minmax")

_LEVELS = 255
#: Share of the values that a percentile range leaves out at each end.
_TAIL = 1e-4
#: Candidate end points on each side of zero, as shares of the observed extreme.
_SHRINK = np.linspace(1.0, 0.05, 96)
#: Each of both ends is searched so often, the other one standing still.
_ROUNDS = 2


@dataclass(frozen=True)
class Range:
    """The ranges of one tensor by kind: (low, high) in its own unit, each containing zero.

    Zero has to be representable, since padding and ReLU make exact zeros.
    """

    minmax: tuple[float, float]
    percentile: tuple[float, float]
    histogram: tuple[float, float]
    mse: tuple[float, float]

    def of(self, kind: str) -> tuple[float, float]:
        """The range of a kind, as in :attr:`edgekit.types.Recipe.ranges`."""
        found: tuple[float, float] = getattr(self, kind)
        return found


def find_ranges(counts: np.ndarray, low: float, high: float, *, zeros: float = 0.0) -> Range:
    """All four ranges.

    Args:
        counts: shape (bins,), the histogram over [low, high].
        low, high: the observed extremes.
        zeros: how many of the counted values are exactly zero.
    """
    return Range(
        minmax=(min(low, 0.0), max(high, 0.0)),
        percentile=percentile_range(counts, low, high),
        histogram=least_expected_error_range(counts, low, high, zeros=zeros),
        mse=least_error_range(counts, low, high, zeros=zeros),
    )


def save_ranges(path: Path, ranges: Mapping[str, Range]) -> None:
    """Write ranges as JSON, keyed by node name."""
    document = {name: asdict(value) for name, value in ranges.items()}
    write_atomic(path, json.dumps(document, indent=1, sort_keys=True, allow_nan=False))


def load_ranges(path: Path) -> dict[str, Range]:
    """Read what :func:`save_ranges` wrote."""
    return {
        name: Range(**{kind: tuple(ends) for kind, ends in value.items()})
        for name, value in json.loads(path.read_text()).items()
    }


def percentile_range(counts: np.ndarray, low: float, high: float) -> tuple[float, float]:
    """The range without the outermost :data:`_TAIL` of the values at each end."""
    if high <= low:
        return min(low, 0.0), max(high, 0.0)
    edges = np.linspace(low, high, len(counts) + 1)
    share = np.concatenate([[0.0], np.cumsum(counts)]) / max(float(np.sum(counts)), 1.0)
    first = edges[max(int(np.searchsorted(share, _TAIL, side="right")) - 1, 0)]
    last = edges[min(int(np.searchsorted(share, 1 - _TAIL, side="left")), len(counts))]
    return min(float(first), 0.0), max(float(last), 0.0)


def least_expected_error_range(
    counts: np.ndarray, low: float, high: float, *, zeros: float = 0.0
) -> tuple[float, float]:
    """The clipping range that minimises the expected squared error of 8-bit affine quantization.

    Rounding costs step^2/12 for each value inside the range, except for exact zeros (the many that
    a ReLU makes), which int8 represents exactly; clipping costs the squared distance. Arguments as
    in :func:`find_ranges`.
    """
    outer_low, outer_high = min(low, 0.0), max(high, 0.0)
    if outer_high - outer_low <= 0 or high <= low:
        return outer_low, outer_high
    edges = np.linspace(low, high, len(counts) + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    moments = [np.concatenate([[0.0], np.cumsum(counts * centres**power)]) for power in range(3)]
    lows, highs = _ends(outer_low), _ends(outer_high)
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


def least_error_range(
    counts: np.ndarray, low: float, high: float, *, zeros: float = 0.0
) -> tuple[float, float]:
    """The range whose int8 grid, applied to the histogram's bin centres, errs least.

    One end is searched while the other stands still, in turns. Arguments as in
    :func:`find_ranges`.
    """
    outer_low, outer_high = min(low, 0.0), max(high, 0.0)
    if outer_high - outer_low <= 0 or high <= low:
        return outer_low, outer_high
    edges = np.linspace(low, high, len(counts) + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    weights = counts.astype(np.float64)
    if low <= 0 <= high:
        at = min(int(np.searchsorted(edges, 0.0, side="right")) - 1, len(counts) - 1)
        weights[at] = max(weights[at] - zeros, 0.0)
    seen = weights > 0
    centres, weights = centres[seen], weights[seen]
    best_low, best_high = outer_low, outer_high
    lows, highs = _ends(outer_low), _ends(outer_high)
    for _ in range(_ROUNDS):
        best_high = float(highs[_best(centres, weights, np.full_like(highs, best_low), highs)])
        best_low = float(lows[_best(centres, weights, lows, np.full_like(lows, best_high))])
    return best_low, best_high


def _ends(outer: float) -> np.ndarray:
    return outer * _SHRINK if outer != 0 else np.zeros(1)


def _best(centres: np.ndarray, weights: np.ndarray, lows: np.ndarray, highs: np.ndarray) -> int:
    """Index of the range with the least squared error over the weighted centres."""
    scale = np.maximum(highs - lows, 1e-30)[:, None] / _LEVELS
    zero = np.round(-lows[:, None] / scale)
    integer = np.clip(np.round(centres[None, :] / scale) + zero, 0, _LEVELS)
    error = centres[None, :] - (integer - zero) * scale
    cost = np.square(error) @ weights
    cost[highs <= lows] = np.inf
    return int(np.argmin(cost))
