"""The reasons of a selection in words with figures; pure.

Why a candidate is over the budget, why it failed, what it lost against the chosen one, and why no
INT8 candidate was chosen, from what the inspection and the device's facts show.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Literal

from edgekit import quality, stats
from edgekit.types import (
    Artifact,
    Budget,
    Candidate,
    CandidateFailure,
    DeviceFacts,
    GoldenCheck,
    Interval,
    Manifest,
    ProbeResult,
    Selection,
)
from edgekit.units import apart, megabytes, milliseconds, number

Objective = Literal["p50", "p90"]

_STAGES = {
    "export": "exporter",
    "inspect": "inspection",
    "evaluate": "evaluation on the host",
    "probe": "runner",
}
_SIGNAL = re.compile(r"\bSIG[A-Z0-9]+\b")
_MOSTLY = 0.95
# Half of an interval relative to its value: candidates twice as slow as others then pass for tied.
_NOISY = 0.5

# The instructions that multiply int8 values several at a time; without them INT8 saves memory
# traffic only. Names as in /proc/cpuinfo.
_DOT_PRODUCTS = {
    "aarch64": ("asimddp", "i8mm"),
    "x86_64": ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"),
}


def latency(candidate: Candidate, objective: Objective) -> Interval | None:
    """The interval that decides, in nanoseconds."""
    return candidate.p50_ns if objective == "p50" else candidate.p90_ns


def tie_break(c: Candidate) -> tuple[float, int, int, str]:
    """Among ties the smallest of these wins: peak RSS, file size, threads, name."""
    rss = math.inf if c.peak_rss_bytes is None else c.peak_rss_bytes
    return (rss, c.size_bytes, c.threads, c.artifact_id)


def over_budget(
    candidate: Candidate, budget: Budget, checks: Sequence[GoldenCheck] = ()
) -> list[str]:
    """Every limit that the candidate breaks, in words with figures.

    ``checks`` are of its outputs on the device: they tell which output the drop is of, and each has
    to be like float at all, whatever the metric sees.
    """
    reasons = []
    drop, rss = candidate.drop, candidate.peak_rss_bytes
    if drop is None or not math.isfinite(drop):
        reasons.append("its outputs on the device were not compared")
    elif not quality.within(drop, budget.max_drop):
        d = apart(drop, budget.max_drop)
        where = _worst_output(checks)
        reasons.append(f"drop{where} {number(drop, d)} > budget {number(budget.max_drop, d)}")
    reasons += [why for c in checks if (why := quality.unlike_float(c.output, c.sqnr_db_float))]
    if budget.max_size_bytes is not None and candidate.size_bytes > budget.max_size_bytes:
        reasons.append(_more("size", candidate.size_bytes, budget.max_size_bytes))
    if budget.max_rss_bytes is not None:
        if rss is None:
            reasons.append("its peak RSS was not measured")
        elif rss > budget.max_rss_bytes:
            reasons.append(_more("peak RSS", rss, budget.max_rss_bytes))
    return reasons


def _worst_output(checks: Sequence[GoldenCheck]) -> str:
    """Such as `` of output boxes``; empty where there is only one output."""
    drops = [(check.drop, check.output) for check in checks if check.drop is not None]
    return f" of output {max(drops)[1]}" if len(drops) > 1 else ""


def _more(what: str, value: int, limit: int) -> str:
    d = apart(value, limit)
    return f"{what} {megabytes(value, d)} > {megabytes(limit, d)}"


def failure_reason(failure: CandidateFailure) -> str:
    """One line such as ``exporter crashed: SIGSEGV``; the failure itself holds the whole story."""
    who = _STAGES[failure.stage]
    signal = _SIGNAL.search(f"{failure.kind} {failure.message}")
    if failure.kind == "timeout":
        return f"{who} ran into its time limit"
    if failure.kind == "memory":
        return f"{who} ran out of memory"
    if signal is not None:
        return f"{who} crashed: {signal[0]}"
    return f"{who} failed: {' '.join(failure.message.split()).rstrip('.')}"


def slower(candidate: Candidate, than: Candidate, objective: Objective) -> str:
    """Such as ``slower: 6.1 ms vs 4.2 ms``."""
    mine, best = latency(candidate, objective), latency(than, objective)
    assert mine is not None and best is not None
    d = apart(mine.value, best.value)
    return f"slower: {milliseconds(mine.value, d)} vs {milliseconds(best.value, d)}"


def advantage(best: Candidate, ties: Sequence[Candidate]) -> str:
    """What decided within the tie set."""
    mine = tie_break(best)
    names = ("smallest peak RSS", "smallest file", "fewest threads", "first by name")
    second = min(tie_break(c) for c in ties if c != best)
    return next(name for name, a, b in zip(names, mine, second, strict=True) if a != b)


def disadvantage(candidate: Candidate, best: Candidate) -> str:
    """What a tied candidate lost by against the chosen one."""
    mine, other = candidate.peak_rss_bytes, best.peak_rss_bytes
    if mine != other:
        if mine is None or other is None:
            return "its peak RSS was not measured"
        return "larger " + _versus("peak RSS", mine, other)
    if candidate.size_bytes != best.size_bytes:
        return "larger " + _versus("file", candidate.size_bytes, best.size_bytes)
    if candidate.threads != best.threads:
        return f"more threads: {candidate.threads} vs {best.threads}"
    return "later by name"


def _versus(what: str, a: int, b: int) -> str:
    d = apart(a, b)
    return f"{what}: {megabytes(a, d)} vs {megabytes(b, d)}"


def threads_text(n: int) -> str:
    """``1 thread``, ``2 threads``."""
    return "1 thread" if n == 1 else f"{n} threads"


def rule(selection: Selection, manifest: Manifest, results: Sequence[ProbeResult]) -> str:
    """The verdict in sentences: what was chosen, how ties went, why no INT8, what to beware of."""
    sentences = [_verdict_sentence(selection)]
    if len(selection.tie_set) > 1:
        tied = [_decisive(selection, i) for i in selection.tie_set]
        why = f"the interval of the ratio reaches into 1 ± {stats.NOISE_FLOOR * 100:g} %"
        if not all(interval.confidence for interval in tied):
            why = f"they differ by less than {stats.UNKNOWN_FLOOR * 100:g} %"
        sentences.append(
            f"{len(selection.tie_set)} candidates cannot be told apart as the fastest ({why}); of "
            "these the smallest peak RSS wins, then the smallest file, fewer threads, the name."
        )
    sentences += [_why_not_int8(selection, manifest, results), *_cautions(selection, results)]
    return " ".join(s for s in sentences if s)


def _verdict_sentence(selection: Selection) -> str:
    limits = f"drop <= {number(selection.budget.max_drop)}"
    if selection.budget.max_size_bytes is not None:
        limits += f", size <= {megabytes(selection.budget.max_size_bytes)}"
    if selection.budget.max_rss_bytes is not None:
        limits += f", peak RSS <= {megabytes(selection.budget.max_rss_bytes)}"
    if selection.chosen is None:
        return f"None of {len(selection.candidates)} candidates is within the budget ({limits})."
    best = selection.candidates[selection.chosen]
    interval = _decisive(selection, selection.chosen)
    eligible = sum(c.eligible for c in selection.candidates)
    kind = "emulated " if best.emulated else ""
    return (
        f"{best.artifact_id} with {threads_text(best.threads)}: {kind}{selection.objective} "
        f"{milliseconds(interval.value)} ({_interval_text(interval)}), {_frames(best)}"
        f"{'tied as fastest' if len(selection.tie_set) > 1 else 'fastest'} of {eligible} "
        f"within the budget ({limits})."
    )


def _frames(candidate: Candidate) -> str:
    return "" if candidate.fps is None else f"{number(candidate.fps)} frames/s, "


def _decisive(selection: Selection, index: int) -> Interval:
    """The interval by which an eligible candidate was ranked."""
    interval = latency(selection.candidates[index], selection.objective)
    assert interval is not None
    return interval


def _interval_text(interval: Interval) -> str:
    if not interval.confidence:
        return "one process: interval unknown"
    low, high = number(interval.low / 1e6), number(interval.high / 1e6)
    return f"{interval.confidence * 100:g} % interval {low} to {high}"


def _cautions(selection: Selection, results: Sequence[ProbeResult]) -> list[str]:
    """What a reader must know before trusting the verdict."""
    cautions = []
    if selection.chosen is not None and selection.candidates[selection.chosen].emulated:
        cautions.append(
            "Emulated: these are no latencies of the device; its instructions can be counted: "
            "edgekit probe --count-instructions."
        )
    else:
        cautions += _uncertainty(selection)
    samples = min((p.golden_n for p in results if p.status == "ok"), default=0)
    if samples and selection.budget.max_drop > 0 and samples < 1 / selection.budget.max_drop:
        cautions.append(
            f"The drop on the device is over {samples} samples, too few to see "
            f"{number(selection.budget.max_drop)}."
        )
    throttled = sum(_throttled(p) for p in results)
    if throttled:
        cautions.append(
            f"The device throttled during {throttled} of {len(results)} measurements: cool it or "
            "check its power supply, and probe again."
        )
    return cautions


def _uncertainty(selection: Selection) -> list[str]:
    """What the latencies of the eligible candidates cannot tell, and what helps."""
    eligible = [i for i, c in enumerate(selection.candidates) if c.eligible]
    intervals = [_decisive(selection, i) for i in eligible]
    cautions = []
    unknown = sum(not interval.confidence for interval in intervals)
    if unknown:
        which = (
            "per candidate"
            if unknown == len(intervals)
            else f"for {unknown} of {len(intervals)} candidates"
        )
        cautions.append(
            f"One process {which}: the interval is unknown, so only differences of "
            f"{stats.UNKNOWN_FLOOR * 100:g} % and more count; probe with --processes 5 or more."
        )
    noisy = sum(_half_width(interval) >= _NOISY for interval in intervals)
    if noisy:
        cautions.append(
            f"The measurements are noisy: {noisy} of {len(intervals)} intervals reach "
            f"± {_NOISY * 100:g} % or more, so that slow candidates may pass for tied. Close other "
            "programs, raise --processes or --budget-s, and probe again."
        )
    return cautions


def _half_width(interval: Interval) -> float:
    """Relative to the value; 0 where it is unknown."""
    return (interval.high - interval.low) / 2 / interval.value if interval.value > 0 else 0.0


def _throttled(probe: ProbeResult) -> bool:
    """By the bits of `vcgencmd get_throttled`: 0-3 are now, 16-19 since boot."""
    before, after = probe.facts_before.throttled or 0, probe.facts_after.throttled or 0
    return bool(after & 0xF or (after & ~before) >> 16)


def _why_not_int8(selection: Selection, manifest: Manifest, results: Sequence[ProbeResult]) -> str:
    """One or two sentences where the choice is a float artifact, else an empty string."""
    if selection.chosen is None or selection.candidates[selection.chosen].precision == "int8":
        return ""
    int8 = [c for c in selection.candidates if c.precision == "int8"]
    if not int8:
        return "The bundle has no INT8 artifact."
    eligible = [c for c in int8 if c.eligible]
    if not eligible:
        reasons = sorted({f"{c.runtime}: {c.reason}" for c in int8})
        more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        return f"No INT8 candidate is eligible ({'; '.join(reasons[:3])}{more})."
    best = eligible[0]
    if any(selection.candidates[i].precision == "int8" for i in selection.tie_set):
        return "INT8 ties with float here and does not need less memory."
    artifact = next(a for a in manifest.artifacts if a.id == best.artifact_id)
    facts = results[0].facts_before if results else None
    causes = _causes(artifact, facts)
    likely = f" Likely because {' and '.join(causes)}." if causes else ""
    interval = latency(best, selection.objective)
    assert interval is not None
    return (
        f"No INT8 candidate is faster than float; the best is {best.artifact_id} at "
        f"{milliseconds(interval.value)}.{likely}"
    )


def _causes(artifact: Artifact, facts: DeviceFacts | None) -> list[str]:
    causes = []
    inspection = artifact.inspection
    if inspection is not None:
        share, delegated = inspection.int8_mac_share, inspection.delegated_share
        if share is not None and share < _MOSTLY:
            causes.append(f"only {share * 100:.0f} % of its multiply-accumulates are int8")
        if delegated is not None and delegated < _MOSTLY:
            outside = ", ".join(o.op for o in inspection.outside_ops[:3])
            where = f" ({outside})" if outside else ""
            causes.append(f"{(1 - delegated) * 100:.0f} % run outside the delegate{where}")
    if facts is not None and facts.cpu_features:
        wanted = _DOT_PRODUCTS.get(facts.arch, ())
        if wanted and not set(wanted) & set(facts.cpu_features):
            causes.append(f"this CPU has no int8 dot product ({', '.join(wanted)})")
    return causes
