"""Quantiles of latencies, their confidence intervals, and whether two candidates differ. Pure.

Samples of one process are alike: they share its memory layout, its clock and the minute it ran in.
The unit of replication is therefore the process (Kalibera & Jones, "Rigorous Benchmarking in
Reasonable Time", ISMM 2013): a *block* is the list of latencies of one process, and every estimate
gives each process the same weight, however many samples fitted into its time budget.

Intervals are Student-t intervals on the logarithm, with the standard error from a bootstrap over
blocks. A percentile bootstrap over five processes covers only 0.82 to 0.86 instead of 0.95; the
cause is in Hesterberg, "What Teachers Should Know About the Bootstrap", Am. Stat. 2015, section
5.2: too narrow by sqrt((n-1)/n) and normal instead of t tails. With both put right, simulated
coverage with five processes is 0.93 to 0.98 for p50 and 0.92 to 0.96 for p90. It falls to 0.63 for
p90 where one process in ten is slow as a whole: five processes then often hold none of those.

A single process says nothing about how processes differ, however many samples it has, so there is
no interval then: its confidence is 0, and only differences above `UNKNOWN_FLOOR` are acted on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgekit.errors import MeasurementInvalid
from edgekit.types import FpsMode, Interval

Array = NDArray[Any]
Blocks = Sequence[Sequence[float] | Array]

NOISE_FLOOR = 0.01
"""Differences below 1 % are not acted on, as in criterion.rs (its default noise threshold)."""

UNKNOWN_FLOOR = 0.25
"""The same where either side is a single process. Link order and environment size alone move whole
processes by some ten per cent (Mytkowicz et al., "Producing Wrong Data Without
Doing Anything Obviously Wrong!", ASPLOS 2009); both sides may be off, in opposite directions."""

RESAMPLES = 1000
"""The standard error of a standard error from 1000 resamples is 2 %, below what decides."""

_POINTS_PER_BLOCK = 200


def frame_rate(latency_ns: Blocks, mode: FpsMode) -> float:
    """Frames per second of inferences one after the other.

    Args:
        latency_ns: of the timed runs in nanoseconds, one list per process.
        mode: ``burst`` is the mean over all processes; ``sustained`` is that of the slowest one,
            for boards that slow down when they are hot: what can be counted on.

    Raises:
        MeasurementInvalid: there are no latencies.
    """
    means = [float(np.mean(block)) for block in _filled(latency_ns)]
    return 1e9 / (max(means) if mode == "sustained" else float(np.mean(means)))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A quantile on the log scale, its standard error, and that error's degrees of freedom.

    Of a single process the error is unknown: 0 with no degree of freedom.
    """

    log_value: float
    log_error: float
    freedom: int

    def interval(self, confidence: float = 0.95) -> Interval:
        """In the unit of the samples; just the value, with confidence 0, of a single process."""
        return _interval(self.log_value, self.log_error, self.freedom, confidence)


@dataclass(frozen=True, slots=True)
class Comparison:
    """``ratio`` = quantile of a / quantile of b; ``verdict`` is about a."""

    ratio: Interval
    verdict: Literal["faster", "slower", "tied"]


def quantile(blocks: Blocks, q: float) -> float:
    """The ``q``-quantile (0 < q < 1) of all samples, each block weighing the same.

    Definition 2 of Hyndman & Fan ("Sample Quantiles in Statistical Packages", Am. Stat. 1996): the
    inverse of the distribution function, averaged where it jumps. Unlike the interpolating
    definitions it is well defined with weights, and p50 of an even count is the usual midpoint.

    Raises:
        MeasurementInvalid: there are no samples.
    """
    filled = _filled(blocks)
    return float(_Pool(filled).quantiles(np.ones((1, len(filled))), q)[0])


def estimate(blocks: Blocks, q: float, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """`quantile` with its standard error, which takes two processes at least, better five.

    Raises:
        MeasurementInvalid: there are no samples.
    """
    filled = _filled(blocks)
    count = len(filled)
    if count == 1:
        return Estimate(_log_quantile(filled, q), 0.0, 0)
    rows, times = _resampled(count, resamples, seed)
    error = _standard_error(_log_quantiles(filled, rows, q), times, count)
    return Estimate(_log_quantile(filled, q), error, count - 1)


def quantile_interval(
    blocks: Blocks,
    q: float,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """`quantile` with its confidence interval, in the unit of the samples; raises as `estimate`."""
    return estimate(blocks, q, resamples=resamples, seed=seed).interval(confidence)


def compare(
    a: Blocks,
    b: Blocks,
    q: float,
    *,
    noise_floor: float = NOISE_FLOOR,
    confidence: float = 0.95,
    paired: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Is ``a`` faster than ``b`` at quantile ``q``?

    Tied means that the interval of the ratio reaches into 1 +- ``noise_floor``: either they are
    alike or the measurement cannot tell. With a single process on either side there is no interval,
    and the ratio itself has to be beyond `UNKNOWN_FLOOR`.

    ``paired`` takes block i of both as neighbours in time (one round of an interleaved probe), so
    that what slowed the machine in that round cancels. It needs equally many blocks, two or more.

    Raises:
        MeasurementInvalid: no samples, or ``paired`` with unequal or single blocks.
    """
    if paired:
        return _verdict(_paired_ratio(a, b, q, confidence, resamples, seed), noise_floor)
    one = estimate(a, q, resamples=resamples, seed=seed)
    other = estimate(b, q, resamples=resamples, seed=seed)
    return compare_estimates(one, other, noise_floor=noise_floor, confidence=confidence)


def compare_estimates(
    a: Estimate, b: Estimate, *, noise_floor: float = NOISE_FLOOR, confidence: float = 0.95
) -> Comparison:
    """`compare` for independent processes, from estimates that were made before.

    As Welch's test ("The generalization of 'Student's' problem", Biometrika 1947), on logarithms.
    """
    if a.freedom == 0 or b.freedom == 0:
        ratio = _interval(a.log_value - b.log_value, 0.0, 0, confidence)
        return _verdict(ratio, max(noise_floor, UNKNOWN_FLOOR))
    error = math.hypot(a.log_error, b.log_error)
    ratio = _interval(a.log_value - b.log_value, error, _welch(a, b), confidence)
    return _verdict(ratio, noise_floor)


def t_quantile(p: float, freedom: int) -> float:
    """Quantile of Student's t with ``freedom`` >= 1 degrees, for 0.5 <= p < 1.

    By bisection on the closed form of the distribution function for whole degrees of freedom
    (Abramowitz & Stegun 26.7.3 and 26.7.4); exact to 1e-9, without scipy.
    """
    low, high = 0.0, 2.0
    while _t_cdf(high, freedom) < p:
        high *= 2
    while high - low > 1e-10 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, freedom) < p else (low, middle)
    return (low + high) / 2


class _Pool:
    """The samples of some blocks in order, ready for quantiles under many weightings."""

    def __init__(self, blocks: Sequence[Array]) -> None:
        values = np.concatenate(blocks)
        order = np.argsort(values, kind="stable")
        sizes = np.array([block.size for block in blocks])
        self._values = values[order]
        self._owner = np.repeat(np.arange(len(blocks)), sizes)[order]
        self._share = 1.0 / sizes[self._owner]

    def quantiles(self, weights: Array, q: float) -> Array:
        """One quantile per row of ``weights``, shape (rows, blocks), rows not all zero."""
        reached = np.cumsum(weights[:, self._owner] * self._share, axis=1)
        wanted = q * weights.sum(axis=1, keepdims=True)
        slack = 1e-9 * weights.sum(axis=1, keepdims=True)
        last = self._values.size - 1
        below = np.minimum(np.count_nonzero(reached < wanted - slack, axis=1), last)
        above = np.minimum(np.count_nonzero(reached <= wanted + slack, axis=1), last)
        found: Array = (self._values[below] + self._values[above]) / 2
        return found


def _reduced(block: Array) -> Array:
    """At most 200 points of the same distribution, so that resampling long runs stays cheap."""
    if block.size <= _POINTS_PER_BLOCK:
        return block
    at = (np.arange(_POINTS_PER_BLOCK) + 0.5) / _POINTS_PER_BLOCK
    points: Array = np.quantile(block, at, method="hazen")
    return points


def _filled(blocks: Blocks) -> list[Array]:
    # A clock that stood still reads 0 ns, which has no logarithm.
    filled = [np.maximum(np.asarray(b, dtype=np.float64), 1e-12) for b in blocks if len(b)]
    if not filled:
        raise MeasurementInvalid(
            "There is no latency sample.", remedy="Probe again with a longer --budget-s."
        )
    return filled


def _resampled(count: int, resamples: int, seed: int) -> tuple[Array, Array]:
    """Bootstrap weights (rows, count) without repeats, and how often each row was drawn.

    Few blocks have few distinct resamples: 126 for five.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples)
    rows, times = np.unique(drawn, axis=0, return_counts=True)
    return rows.astype(np.float64), times


def _standard_error(values: Array, times: Array, count: int) -> float:
    """Of log values drawn ``times`` often, with the correction for ``count`` blocks."""
    mean = np.average(values, weights=times)
    variance = np.average(np.square(values - mean), weights=times)
    return math.sqrt(float(variance) * count / (count - 1))


def _log_quantile(blocks: Sequence[Array], q: float) -> float:
    return float(np.log(_Pool(blocks).quantiles(np.ones((1, len(blocks))), q)[0]))


def _log_quantiles(blocks: Sequence[Array], rows: Array, q: float) -> Array:
    """One per row of bootstrap weights."""
    return np.log(_Pool([_reduced(block) for block in blocks]).quantiles(rows, q))


def _verdict(ratio: Interval, noise_floor: float) -> Comparison:
    if ratio.low > 1 + noise_floor:
        return Comparison(ratio, "slower")
    if ratio.high < 1 / (1 + noise_floor):
        return Comparison(ratio, "faster")
    return Comparison(ratio, "tied")


def _paired_ratio(
    a: Blocks, b: Blocks, q: float, confidence: float, resamples: int, seed: int
) -> Interval:
    count = len(a)
    if (
        count != len(b)
        or count < 2
        or not all(len(x) and len(y) for x, y in zip(a, b, strict=True))
    ):
        raise MeasurementInvalid(
            f"A paired comparison needs as many processes of both, at least two; there are "
            f"{len(a)} and {len(b)}."
        )
    one, other = _filled(a), _filled(b)
    rows, times = _resampled(count, resamples, seed)
    logs = _log_quantiles(one, rows, q) - _log_quantiles(other, rows, q)
    error = _standard_error(logs, times, count)
    value = _log_quantile(one, q) - _log_quantile(other, q)
    return _interval(value, error, count - 1, confidence)


def _interval(log_value: float, log_error: float, freedom: int, confidence: float) -> Interval:
    if freedom == 0:
        value = math.exp(log_value)
        return Interval(value, value, value, confidence=0.0)
    # Two wildly different processes reach beyond what a float, and JSON, can hold.
    reach = min(t_quantile((1 + confidence) / 2, freedom) * log_error, 300.0)
    return Interval(
        value=math.exp(log_value),
        low=math.exp(log_value - reach),
        high=math.exp(log_value + reach),
        confidence=confidence,
    )


def _welch(one: Estimate, other: Estimate) -> int:
    """Welch-Satterthwaite degrees of freedom, rounded down to stay on the safe side."""
    a, b = one.log_error**2, other.log_error**2
    if a + b == 0:
        return one.freedom + other.freedom
    return max(1, int((a + b) ** 2 / (a**2 / one.freedom + b**2 / other.freedom)))


def _t_cdf(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    if freedom % 2:
        term, total = cosine, 0.0
        for k in range(1, freedom - 1, 2):
            total += term
            term *= cosine**2 * (k + 1) / (k + 2)
        return 0.5 + (angle + sine * total) / math.pi
    term, total = 1.0, 0.0
    for k in range(0, freedom - 1, 2):
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    return 0.5 + sine * total / 2
