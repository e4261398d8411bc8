"""Quantiles against numpy, intervals against their promised coverage, comparisons A/A and A/B."""

from __future__ import annotations

import math
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import stats
from edgekit.errors import MeasurementInvalid
from edgekit.types import Interval

samples = st.lists(st.integers(1, 10**9), min_size=1, max_size=30)


def processes(
    rng: np.random.Generator, count: int, size: int, *, between: float = 0.02, level: float = 1e7
) -> list[np.ndarray]:
    """Latencies (ns) whose processes differ by ``between`` and drift slowly inside."""
    blocks = []
    for _ in range(count):
        shared = rng.normal(0, between) + np.cumsum(rng.normal(0, 0.001, size))
        blocks.append(level * np.exp(shared + rng.normal(0, 0.02, size)))
    return blocks


@given(samples, st.sampled_from([0.01, 0.1, 0.25, 0.5, 0.9, 0.99]))
def test_quantile_of_one_block_is_definition_2(values: list[int], q: float) -> None:
    expected = np.quantile(np.array(values, float), q, method="averaged_inverted_cdf")
    assert stats.quantile([values], q) == pytest.approx(expected)


@given(st.lists(samples, min_size=1, max_size=5), st.randoms())
def test_quantile_ignores_the_order_of_blocks_and_samples(
    blocks: list[list[int]], order: random.Random
) -> None:
    shuffled = [order.sample(block, len(block)) for block in blocks]
    order.shuffle(shuffled)
    assert stats.quantile(shuffled, 0.5) == pytest.approx(stats.quantile(blocks, 0.5))


def test_each_process_weighs_the_same_however_many_samples_it_has() -> None:
    assert stats.quantile([[10.0] * 100, [30.0], [30.0]], 0.5) == 30.0
    assert stats.quantile([[1.0, 2.0], [3.0, 4.0]], 0.5) == 2.5


def test_a_sustained_frame_rate_is_that_of_the_slowest_process() -> None:
    cool_then_hot = [[1e7] * 100, [1e7, 3e7], [4e7]]
    assert stats.frame_rate(cool_then_hot, "sustained") == 25.0
    assert stats.frame_rate(cool_then_hot, "burst") == pytest.approx(1e9 / ((1 + 2 + 4) * 1e7 / 3))


def test_no_samples_are_refused() -> None:
    with pytest.raises(MeasurementInvalid):
        stats.frame_rate([[]], "burst")
    with pytest.raises(MeasurementInvalid) as caught:
        stats.quantile([[], []], 0.5)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("p", "freedom", "expected"),
    [
        (0.975, 1, 12.7062047),
        (0.975, 2, 4.3026527),
        (0.975, 4, 2.7764451),
        (0.975, 9, 2.2621572),
        (0.995, 5, 4.0321430),
        (0.95, 30, 1.6972609),
        (0.5, 7, 0.0),
    ],
)
def test_student_t_against_the_tables(p: float, freedom: int, expected: float) -> None:
    assert stats.t_quantile(p, freedom) == pytest.approx(expected, abs=2e-7)


@pytest.mark.parametrize("q", [0.5, 0.9])
def test_the_interval_covers_the_truth_as_often_as_it_says(q: float) -> None:
    """Five processes; the percentile bootstrap that this replaces reaches about 0.8."""
    rng = np.random.default_rng(3)
    truth = stats.quantile(processes(rng, 4000, 40), q)
    trials, hits = 300, 0
    for trial in range(trials):
        found = stats.quantile_interval(processes(rng, 5, 40), q, seed=trial)
        hits += found.low <= truth <= found.high
    assert 0.88 <= hits / trials <= 0.99


def test_more_processes_narrow_the_interval_more_samples_in_one_do_not() -> None:
    rng = np.random.default_rng(5)

    def width(count: int, size: int) -> float:
        found = [
            stats.quantile_interval(processes(rng, count, size, between=0.05), 0.5)
            for _ in range(20)
        ]
        return float(np.median([f.high - f.low for f in found]))

    few, many, long = width(5, 30), width(20, 30), width(5, 300)
    assert many < 0.6 * few
    assert long > 0.6 * few


@settings(max_examples=50, deadline=None)
@given(st.lists(samples, min_size=2, max_size=6), st.floats(1e-3, 1e3))
def test_interval_holds_its_value_and_scales_with_the_unit(
    blocks: list[list[int]], scale: float
) -> None:
    found = stats.quantile_interval(blocks, 0.5)
    assert found.low <= found.value * (1 + 1e-12)
    assert found.value <= found.high * (1 + 1e-12)
    assert found.value == pytest.approx(stats.quantile(blocks, 0.5))
    assert math.isfinite(found.high)
    other = stats.quantile_interval([[x * scale for x in block] for block in blocks], 0.5)
    assert other.high / other.value == pytest.approx(found.high / found.value, rel=1e-6)


def test_same_seed_same_interval() -> None:
    blocks = processes(np.random.default_rng(1), 7, 50)
    assert stats.quantile_interval(blocks, 0.9, seed=4) == stats.quantile_interval(
        blocks, 0.9, seed=4
    )


@pytest.mark.parametrize("blocks", [[[1.0, 2.0, 3.0]], [[], [1.0, 2.0, 3.0], []]])
def test_one_process_has_no_interval_however_steady_it_is(blocks: list[list[float]]) -> None:
    found = stats.quantile_interval(blocks, 0.5)
    assert found == Interval(found.value, found.value, found.value, confidence=0.0)
    assert found.value == pytest.approx(2.0)


def test_single_processes_are_told_apart_by_large_differences_only() -> None:
    rng = np.random.default_rng(4)
    steady = [np.full(1000, 1e7) + rng.normal(0, 100, 1000)]
    many = processes(rng, 5, 40, between=0.001, level=1e7)
    for other in (steady, many):
        for factor, verdict in ((1.2, "tied"), (0.81, "tied"), (1.3, "slower"), (0.7, "faster")):
            found = stats.compare([steady[0] * factor], other, 0.5)
            assert (found.verdict, found.ratio.confidence) == (verdict, 0.0)
            assert found.ratio.value == pytest.approx(factor, rel=0.01)
    assert stats.compare([steady[0] * 1.3], steady, 0.5, noise_floor=0.5).verdict == "tied"


def test_a_clock_that_stood_still_does_no_harm() -> None:
    found = stats.quantile_interval([[0, 0, 0], [0, 0]], 0.5)
    assert found.value == pytest.approx(0.0, abs=1e-9)


def test_equal_candidates_are_tied() -> None:
    rng = np.random.default_rng(11)
    verdicts = [
        stats.compare(processes(rng, 5, 40), processes(rng, 5, 40), 0.5, seed=i).verdict
        for i in range(200)
    ]
    assert verdicts.count("tied") >= 185


def test_a_real_difference_is_found_with_its_direction_and_size() -> None:
    rng = np.random.default_rng(12)
    hits = 0
    for i in range(50):
        slow, fast = processes(rng, 5, 40, level=1.2e7), processes(rng, 5, 40)
        found = stats.compare(slow, fast, 0.5, seed=i)
        assert found.ratio.value == pytest.approx(1.2, rel=0.1)
        assert stats.compare(fast, slow, 0.5, seed=i).verdict != "slower"
        hits += found.verdict == "slower"
    assert hits >= 48


def test_a_difference_inside_the_noise_floor_is_no_difference() -> None:
    a, b = [[1000.0] * 5] * 5, [[1008.0] * 5] * 5
    assert stats.compare(b, a, 0.5).verdict == "tied"
    assert stats.compare(b, a, 0.5, noise_floor=0.005).verdict == "slower"
    assert stats.compare(a, b, 0.5, noise_floor=0.005).verdict == "faster"


@settings(max_examples=40, deadline=None)
@given(st.lists(samples, min_size=2, max_size=5), st.lists(samples, min_size=2, max_size=5))
def test_comparing_the_other_way_round_mirrors(a: list[list[int]], b: list[list[int]]) -> None:
    one, other = stats.compare(a, b, 0.5), stats.compare(b, a, 0.5)
    assert one.ratio.value == pytest.approx(1 / other.ratio.value)
    if one.verdict != "tied" and other.verdict != "tied":
        assert {one.verdict, other.verdict} == {"faster", "slower"}


def test_pairing_cancels_what_slowed_both_in_the_same_round() -> None:
    rng = np.random.default_rng(13)
    heat = np.exp(rng.normal(0, 0.3, 6))
    a = [1.05e7 * h * np.exp(rng.normal(0, 0.005, 40)) for h in heat]
    b = [1.00e7 * h * np.exp(rng.normal(0, 0.005, 40)) for h in heat]
    assert stats.compare(a, b, 0.5).verdict == "tied"
    paired = stats.compare(a, b, 0.5, paired=True)
    assert paired.verdict == "slower"
    assert paired.ratio.value == pytest.approx(1.05, rel=0.02)
    with pytest.raises(MeasurementInvalid, match="6 and 5"):
        stats.compare(a, b[:5], 0.5, paired=True)


def test_long_runs_stay_cheap() -> None:
    blocks = processes(np.random.default_rng(2), 5, 20_000)
    start = time.process_time()
    for _ in range(10):
        stats.quantile_interval(blocks, 0.9)
    assert time.process_time() - start < 5
