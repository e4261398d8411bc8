"""The selection and its reasons on examples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgekit.errors import MeasurementInvalid
from edgekit.select import select
from edgekit.types import (
    Budget,
    CandidateFailure,
    FpsMode,
    GoldenCheck,
    OpCount,
    ProbeResult,
    Selection,
)
from tests.fixtures.made_up import (
    CRASHED_EXPORT,
    FACTS,
    ILLEGAL_INSTRUCTION,
    artifact,
    demo,
    failed,
    manifest,
    probe,
)

FLOAT = artifact("tflite", "fp32")
INT8 = artifact("tflite", "int8")
OTHER = artifact("executorch", "int8")
EMULATED = replace(FACTS, emulated=True)
BUDGET = Budget(max_drop=0.1)


def choose(*probes: ProbeResult, budget: Budget = BUDGET, **options: Any) -> Selection:
    return select(manifest([FLOAT, INT8, OTHER]), probes, budget, **options)


def reasons(selection: Selection) -> dict[tuple[str, int], str]:
    return {(c.artifact_id, c.threads): c.reason for c in selection.candidates}


def test_the_fastest_within_the_budget_is_chosen() -> None:
    found = choose(
        probe(FLOAT, ms=8.0), probe(INT8, ms=4.2, drop=0.05), probe(OTHER, ms=6.1), budget=BUDGET
    )
    assert found.chosen == 0 and found.tie_set == (0,)
    best = found.candidates[0]
    assert (best.artifact_id, best.reason) == (INT8.id, "chosen: fastest within the budget")
    assert best.p50_ns is not None and best.p50_ns.value == pytest.approx(4.2e6, rel=0.03)
    assert reasons(found)[OTHER.id, 1].startswith("slower: 6.")
    assert " vs 4.2" in reasons(found)[OTHER.id, 1]
    assert found.rule.startswith(f"{INT8.id} with 1 thread: p50 4.2")
    assert "fastest of 3 within the budget (drop <= 0.1)" in found.rule


@pytest.mark.parametrize(
    ("changes", "budget", "reason"),
    [
        ({"drop": 0.139}, Budget(0.1), "drop 0.139 > budget 0.1"),
        ({"drop": 0.10004}, Budget(0.1), "drop 0.10004 > budget 0.1"),
        ({"drop": None}, Budget(0.1), "its outputs on the device were not compared"),
        (
            {"rss": 412_000_000, "processes": 1},
            Budget(0.1, max_rss_bytes=300_000_000),
            "peak RSS 412 MB > 300 MB",
        ),
        ({}, Budget(0.1, max_size_bytes=5_000_000), "size 5.02 MB > 5 MB"),
        (
            {"drop": 0.5, "rss": 1_250_000_000, "processes": 1},
            Budget(0.01, max_rss_bytes=10**9),
            "drop 0.5 > budget 0.01; peak RSS 1250 MB > 1000 MB",
        ),
        ({"samples": 0}, Budget(0.1), "no latency: There is no latency sample."),
    ],
)
def test_what_breaks_a_limit_is_rejected_with_figures(
    changes: dict[str, Any], budget: Budget, reason: str
) -> None:
    found = choose(probe(INT8, ms=4.2, **changes), budget=budget)
    assert found.chosen is None and found.tie_set == ()
    assert reasons(found)[INT8.id, 1] == reason
    assert found.rule.startswith("None of 3 candidates is within the budget")


def test_every_output_must_keep_the_budget_and_be_like_float() -> None:
    scores = GoldenCheck("scores", 24.0, 0.1, 60.0, 0.1, drop=0.0)
    boxes = GoldenCheck("boxes", 9.1, 0.1, 60.0, 0.1, drop=0.12)

    def reason(*checks: GoldenCheck, drop: float) -> str:
        found = choose(replace(probe(INT8, ms=4, drop=drop), golden=checks))
        return reasons(found)[INT8.id, 1]

    assert reason(scores, boxes, drop=0.12) == "drop of output boxes 0.12 > budget 0.1"
    assert reason(boxes, drop=0.12) == "drop 0.12 > budget 0.1"
    lost = replace(boxes, sqnr_db_float=-0.3, drop=0.0)
    assert reason(scores, lost, drop=0.0) == (
        "output boxes is at -0.3 dB against the float model (at least 6 dB)"
    )
    assert reason(scores, replace(boxes, drop=0.1), drop=0.1).startswith("chosen")


def test_a_drop_equal_to_the_budget_is_within_it_whatever_the_rounding() -> None:
    assert choose(probe(INT8, ms=4, drop=1 - 0.9), budget=Budget(0.1)).chosen == 0
    assert choose(probe(INT8, ms=4, drop=0.1 + 0.2), budget=Budget(0.3)).chosen == 0
    assert choose(probe(INT8, ms=4, drop=-0.02), budget=Budget(0.0)).chosen == 0


def test_the_frame_rate_is_told_as_the_device_s_profile_wants_it() -> None:
    timed = probe(INT8, ms=4)
    latencies = ((4_000_000,), (5_000_000, 5_000_000))
    expected: dict[FpsMode, float] = {"burst": 222.2, "sustained": 200.0}
    for mode, fps in expected.items():
        request = replace(timed.request, fps_mode=mode)
        found = choose(replace(timed, latency_ns=latencies, request=request))
        assert found.candidates[0].fps == pytest.approx(fps, abs=0.1)
        assert f"{fps:.3g} frames/s" in found.rule
    emulated = replace(timed, facts_before=replace(timed.facts_before, emulated=True))
    assert choose(emulated).candidates[0].fps is None
    assert "frames/s" not in choose(emulated).rule


def test_unmeasured_memory_is_no_free_pass() -> None:
    silent = replace(probe(INT8, ms=4.2), peak_rss_bytes=())
    assert choose(silent).chosen == 0
    found = choose(silent, budget=Budget(0.1, max_rss_bytes=10**12))
    assert reasons(found)[INT8.id, 1] == "its peak RSS was not measured"


def test_the_largest_peak_of_all_processes_counts() -> None:
    uneven = replace(probe(INT8, ms=4.2), peak_rss_bytes=(100, 900, 200, 100, 100))
    assert choose(uneven).candidates[0].peak_rss_bytes == 900


def test_ties_go_to_the_smallest_memory_and_the_rule_says_so() -> None:
    found = choose(
        probe(INT8, ms=4.20, rss=90_000_000, between=0.02),
        probe(OTHER, ms=4.22, rss=50_000_000, between=0.02),
        probe(FLOAT, ms=9.0, rss=10_000_000),
    )
    assert found.chosen is not None
    assert found.candidates[found.chosen].artifact_id == OTHER.id
    assert {found.candidates[i].artifact_id for i in found.tie_set} == {INT8.id, OTHER.id}
    assert reasons(found)[OTHER.id, 1] == "chosen: tied as fastest, smallest peak RSS"
    assert reasons(found)[INT8.id, 1] == "tied with the chosen; larger peak RSS: 90 MB vs 50 MB"
    assert "2 candidates cannot be told apart" in found.rule
    assert "smallest peak RSS wins, then the smallest file, fewer threads, the name" in found.rule


def test_within_ties_size_then_threads_then_name() -> None:
    small = replace(OTHER, size_bytes=1000)
    bundle = manifest([INT8, small])
    same = {"ms": 4.2, "rss": 10**8}
    found = select(bundle, [probe(INT8, **same), probe(small, **same)], BUDGET)  # type: ignore[arg-type]
    assert reasons(found)[small.id, 1] == "chosen: tied as fastest, smallest file"
    assert reasons(found)[INT8.id, 1].startswith("tied with the chosen; larger file: 5.02 MB vs")
    found = choose(probe(INT8, ms=4.2, threads=2), probe(INT8, ms=4.2, threads=1))
    assert reasons(found)[INT8.id, 1] == "chosen: tied as fastest, fewest threads"
    assert reasons(found)[INT8.id, 2] == "tied with the chosen; more threads: 2 vs 1"
    found = choose(probe(INT8, ms=4.2), probe(OTHER, ms=4.2))
    assert reasons(found)[OTHER.id, 1] == "chosen: tied as fastest, first by name"


def test_a_noisy_fastest_does_not_let_a_clearly_beaten_candidate_win_on_memory() -> None:
    found = choose(
        probe(INT8, ms=3.9, between=0.4, rss=90_000_000),
        probe(OTHER, ms=4.0, between=0.001, rss=80_000_000),
        probe(FLOAT, ms=4.6, between=0.001, rss=10_000_000),
    )
    assert found.chosen is not None
    assert found.candidates[found.chosen].artifact_id == OTHER.id
    assert reasons(found)[FLOAT.id, 1].startswith("slower: 4.6")


def test_single_processes_decide_by_large_differences_and_the_rule_says_so() -> None:
    found = choose(
        probe(INT8, ms=4.0, processes=1, rss=90_000_000),
        probe(OTHER, ms=4.6, processes=1, rss=50_000_000),
        probe(FLOAT, ms=9.0, processes=1, rss=10_000_000),
    )
    assert found.chosen is not None
    assert found.candidates[found.chosen].artifact_id == OTHER.id
    assert len(found.tie_set) == 2
    assert reasons(found)[FLOAT.id, 1].startswith("slower: 9")
    assert "(one process: interval unknown)" in found.rule
    assert "told apart as the fastest (they differ by less than 25 %)" in found.rule
    assert "One process per candidate: the interval is unknown, so only diff" in found.rule
    assert "95 %" not in found.rule and "noisy" not in found.rule
    mixed = choose(probe(INT8, ms=4.0, processes=1), probe(OTHER, ms=9.0))
    assert "One process for 1 of 2 candidates: the interval is unknown" in mixed.rule
    assert "One process" not in choose(probe(INT8, ms=4.0, processes=2)).rule


def test_a_noisy_machine_is_named_with_what_helps() -> None:
    noisy = probe(INT8, ms=4.0, between=0.6)
    rule = choose(noisy, probe(OTHER, ms=6.0)).rule
    assert "noisy: 1 of 2 intervals reach ± 50 % or more" in rule
    assert "Close other programs, raise --processes or --budget-s, and probe again." in rule
    assert "noisy" not in choose(probe(INT8, ms=4.0, between=0.05)).rule
    assert "noisy" not in choose(replace(noisy, drop=0.5), probe(OTHER, ms=6.0)).rule


def test_an_emulated_result_never_wins_against_a_measured_one() -> None:
    measured, emulated = probe(FLOAT, ms=90.0), probe(INT8, ms=1.0, facts=EMULATED)
    found = choose(measured, emulated)
    assert found.chosen is not None
    assert found.candidates[found.chosen].artifact_id == FLOAT.id
    assert reasons(found)[INT8.id, 1] == "emulated: does not count beside measured results"
    alone = choose(emulated)
    assert alone.chosen == 0
    assert "emulated p50" in alone.rule and "no latencies of the device" in alone.rule


def test_a_failed_probe_and_a_failed_export_are_listed_with_their_cause() -> None:
    bundle = manifest([FLOAT, artifact("torchscript", "int8")])
    crash = failed(bundle.artifacts[1], ILLEGAL_INSTRUCTION)
    found = select(bundle, [probe(FLOAT, ms=8), crash], BUDGET, export_failures=[CRASHED_EXPORT])
    assert reasons(found)[ILLEGAL_INSTRUCTION.candidate, 1] == "runner crashed: SIGILL"
    assert reasons(found)[CRASHED_EXPORT.candidate, 0] == "exporter crashed: SIGSEGV"
    assert "No INT8 candidate is eligible (onnx: exporter crashed: SIGSEGV; torch" in found.rule


@pytest.mark.parametrize(
    ("kind", "message", "reason"),
    [
        ("timeout", "Export was stopped after its limit of 900 s.", "ran into its time limit"),
        ("memory", "Export died of SIGKILL.", "ran out of memory"),
        (
            "exception",
            "Export: ValueError:\n  no such op.",
            "failed: Export: ValueError: no such op",
        ),
    ],
)
def test_kinds_of_failure(kind: str, message: str, reason: str) -> None:
    failure = CandidateFailure(OTHER.id, "executorch", "export", kind, message)
    assert reasons(choose(export_failures=[failure]))[OTHER.id, 0] == f"exporter {reason}"


def test_what_was_not_probed_is_listed_too() -> None:
    found = choose(probe(FLOAT, ms=8))
    assert reasons(found)[INT8.id, 0] == "not probed"
    assert len(found.candidates) == 3


def test_the_newest_result_of_a_candidate_counts() -> None:
    old = probe(INT8, ms=4.0, started="2025-11-02T10:15:00Z")
    new = probe(INT8, ms=9.0, started="2025-11-02T10:16:00Z")
    for order in ((old, new), (new, old)):
        best = choose(*order).candidates[0]
        assert best.p50_ns is not None and best.p50_ns.value > 8e6


def test_a_probe_of_another_file_is_refused() -> None:
    stale = probe(replace(INT8, sha256="0" * 64), ms=1.0)
    with pytest.raises(MeasurementInvalid, match="000000000000, which is not in this bundle"):
        choose(stale)


def test_why_no_int8_is_faster() -> None:
    slow = artifact(
        "tflite", "int8", int8_share=0.43, delegated=0.62, outside=(OpCount("SOFTMAX", 4),)
    )
    bundle = manifest([FLOAT, slow])
    found = select(bundle, [probe(FLOAT, ms=4.0), probe(slow, ms=6.1)], BUDGET)
    assert "No INT8 candidate is faster than float; the best is" in found.rule
    assert "only 43 % of its multiply-accumulates are int8" in found.rule
    assert "38 % run outside the delegate (SOFTMAX)" in found.rule
    assert "no int8 dot product (asimddp, i8mm)" in found.rule
    quick = replace(FACTS, cpu_features=("asimd", "asimddp"))
    found = select(
        bundle, [probe(FLOAT, ms=4.0, facts=quick), probe(slow, ms=6.1, facts=quick)], BUDGET
    )
    assert "dot product" not in found.rule
    only_float = select(manifest([FLOAT]), [probe(FLOAT, ms=4.0)], BUDGET)
    assert "The bundle has no INT8 artifact." in only_float.rule


def test_p90_decides_where_it_is_the_objective() -> None:
    steady = probe(INT8, ms=4.3)
    spiky = probe(OTHER, ms=4.0)
    spikes = tuple(
        tuple(x * 3 if i % 5 == 0 else x for i, x in enumerate(b)) for b in spiky.latency_ns
    )
    both = (steady, replace(spiky, latency_ns=spikes))
    assert choose(*both).candidates[0].artifact_id == OTHER.id
    found = choose(*both, objective="p90")
    assert found.chosen is not None
    assert found.candidates[found.chosen].artifact_id == INT8.id
    assert ": p90 4." in found.rule


def test_cautions() -> None:
    hot = replace(probe(INT8, ms=4), facts_after=replace(FACTS, throttled=0x50005))
    rule = choose(hot, budget=Budget(0.01)).rule
    assert "throttled during 1 of 1 measurements" in rule
    assert "over 24 samples, too few to see 0.01" in rule
    since_boot = replace(FACTS, throttled=0x50000)
    assert "throttled" not in choose(probe(INT8, ms=4, facts=since_boot)).rule


def test_the_made_up_run_as_a_whole() -> None:
    found = select(*demo()[:2], BUDGET, export_failures=demo()[2])
    assert found.chosen is not None
    assert found.candidates[found.chosen].artifact_id.endswith("executorch-static_wi8_ai8")
    assert len(found.tie_set) == 2
    assert len(found.candidates) == 15
    assert all(c.reason for c in found.candidates)
