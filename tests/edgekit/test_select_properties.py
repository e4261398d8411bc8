"""The selection over random candidates. Latencies are few-valued, so that ties are common."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit import stats
from edgekit.types import Budget, Candidate, ProbeResult
from tests.edgekit.test_select import EMULATED, FLOAT, INT8, OTHER, choose
from tests.fixtures.made_up import FACTS, probe


@st.composite
def runs(draw: st.DrawFn) -> list[ProbeResult]:
    keys = draw(
        st.lists(
            st.tuples(st.sampled_from([FLOAT, INT8, OTHER]), st.integers(1, 3)),
            min_size=1,
            max_size=7,
            unique_by=lambda k: (k[0].id, k[1]),
        )
    )
    return [
        probe(
            of,
            threads=threads,
            ms=draw(st.sampled_from([4.0, 4.02, 4.2, 5.0, 9.0])),
            drop=draw(st.sampled_from([None, 0.0, 0.05, 0.1, 0.2])),
            rss=draw(st.sampled_from([50, 60, 100])) * 10**6,
            between=draw(st.sampled_from([0.001, 0.02, 0.3])),
            facts=draw(st.sampled_from([FACTS, FACTS, FACTS, EMULATED])),
            samples=8,
            processes=3,
        )
        for of, threads in keys
    ]


budgets = st.builds(
    Budget,
    max_drop=st.sampled_from([0.0, 0.05, 0.1, 0.5]),
    max_size_bytes=st.sampled_from([None, 1_000_000, 6_000_000]),
    max_rss_bytes=st.sampled_from([None, 55_000_000, 90_000_000]),
)
quick = settings(max_examples=80, deadline=None)


@quick
@given(runs(), budgets, st.randoms())
def test_the_order_of_the_input_does_not_matter(
    probes: list[ProbeResult], budget: Budget, order: random.Random
) -> None:
    shuffled = order.sample(probes, len(probes))
    assert choose(*shuffled, budget=budget) == choose(*probes, budget=budget)


@quick
@given(runs(), budgets)
def test_the_chosen_is_eligible_and_everyone_has_a_reason(
    probes: list[ProbeResult], budget: Budget
) -> None:
    found = choose(*probes, budget=budget)
    assert all(c.reason for c in found.candidates)
    eligible = {i for i, c in enumerate(found.candidates) if c.eligible}
    assert set(found.tie_set) <= eligible
    assert (found.chosen is None) == (not eligible)
    if found.chosen is not None:
        assert found.chosen in found.tie_set
        best = found.candidates[found.chosen]
        assert best.drop is not None and best.drop <= budget.max_drop + 1e-9
        if any(not found.candidates[i].emulated for i in eligible):
            assert not best.emulated


def _probe_of(candidate: Candidate, probes: list[ProbeResult]) -> ProbeResult:
    key = (candidate.artifact_id, candidate.threads)
    return next(p for p in probes if (p.request.artifact_id, p.request.threads) == key)


@quick
@given(
    runs(),
    budgets,
    st.sampled_from(
        [
            lambda b: replace(b, max_drop=1.0),
            lambda b: replace(b, max_size_bytes=None),
            lambda b: replace(b, max_rss_bytes=None),
        ]
    ),
)
def test_relaxing_the_budget_never_makes_the_chosen_slower(
    probes: list[ProbeResult], tight: Budget, relax: Callable[[Budget], Budget]
) -> None:
    """Slower beyond doubt, that is: within a tie the one with less memory may win.

    Emulated results are left out, since the first measured candidate displaces them all.
    """
    probes = [replace(p, facts_before=FACTS, facts_after=FACTS) for p in probes]
    before, after = choose(*probes, budget=tight), choose(*probes, budget=relax(tight))
    assert sum(c.eligible for c in after.candidates) >= sum(c.eligible for c in before.candidates)
    if before.chosen is not None:
        assert after.chosen is not None
        old = _probe_of(before.candidates[before.chosen], probes)
        new = _probe_of(after.candidates[after.chosen], probes)
        assert stats.compare(new.latency_ns, old.latency_ns, 0.5).verdict != "slower"


@quick
@given(runs(), budgets)
def test_nobody_eligible_is_faster_than_the_chosen_beyond_doubt(
    probes: list[ProbeResult], budget: Budget
) -> None:
    found = choose(*probes, budget=budget)
    if found.chosen is None:
        return
    best = found.candidates[found.chosen]
    chosen = _probe_of(best, probes)
    for other in found.candidates:
        if other.eligible and other.emulated == best.emulated:
            rival = _probe_of(other, probes)
            assert stats.compare(rival.latency_ns, chosen.latency_ns, 0.5).verdict != "faster"


@quick
@given(runs(), budgets)
def test_removing_a_rejected_candidate_changes_nothing_for_the_others(
    probes: list[ProbeResult], budget: Budget
) -> None:
    found = choose(*probes, budget=budget)
    out = {(c.artifact_id, c.threads) for c in found.candidates if not c.eligible}
    kept = [p for p in probes if (p.request.artifact_id, p.request.threads) not in out]
    again = choose(*kept, budget=budget)
    assert [c for c in again.candidates if c.eligible] == [
        c for c in found.candidates if c.eligible
    ]
