"""Which candidate to activate: probe results and a budget in, a Selection with all reasons out.

Pure: no I/O and no clock, and the order of the input does not matter, so that a selection can be
made again from the stored results and gives the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from edgekit import explain, stats
from edgekit.errors import MeasurementInvalid
from edgekit.explain import Objective
from edgekit.types import (
    Artifact,
    Budget,
    Candidate,
    CandidateFailure,
    Manifest,
    Precision,
    ProbeResult,
    Selection,
)

_QUANTILES = {"p50": 0.5, "p90": 0.9}


@dataclass(frozen=True, slots=True)
class _Judged:
    """A candidate with what the ranking needs beside it."""

    candidate: Candidate
    estimate: stats.Estimate | None = None


def select(
    manifest: Manifest,
    probes: Iterable[ProbeResult],
    budget: Budget,
    objective: Objective = "p50",
    export_failures: Sequence[CandidateFailure] = (),
) -> Selection:
    """The fastest candidate within the budget, decided by what the device itself gave.

    A candidate is one artifact at one thread count; of several results of one candidate the newest
    counts. The tie set holds the eligible candidates that no other is faster than beyond the noise
    floor (`stats.compare_estimates`; a much higher one for single processes); of them the smallest
    peak RSS wins, then the smallest file, then fewer threads, then the name. A result from an
    emulator never wins against a measured one.

    Args:
        manifest: the bundle that was probed.
        probes: results of its artifacts on one device; failed ones too.
        budget: what a candidate must keep.
        objective: the latency quantile that is minimised.
        export_failures: candidates that could not be made or run, for the list of reasons.

    Returns:
        the eligible candidates first, fastest first, then the others by name; ``chosen`` is None
        where nothing is eligible.

    Raises:
        MeasurementInvalid: a probe is of a file that the manifest does not hold.
    """
    results = _newest(manifest, probes)
    artifacts = {a.id: a for a in manifest.artifacts}
    judged = [_judge(artifacts[p.request.artifact_id], p, budget, objective) for p in results]
    judged += _not_probed(manifest, results, export_failures)
    judged.sort(key=lambda j: _rank(j.candidate, objective))
    pool = _in_the_running([j for j in judged if j.candidate.eligible])
    ties = [j for j in pool if _beaten_by(j, pool) is None]
    chosen = min(ties, key=lambda j: explain.tie_break(j.candidate), default=None)
    explained = [_explain(j, chosen, pool, ties, objective) for j in judged]
    selection = Selection(
        chosen=None if chosen is None else judged.index(chosen),
        tie_set=tuple(i for i, j in enumerate(judged) if j in ties),
        budget=budget,
        objective=objective,
        candidates=tuple(explained),
        rule="",
    )
    return replace(selection, rule=explain.rule(selection, manifest, results))


def _newest(manifest: Manifest, probes: Iterable[ProbeResult]) -> list[ProbeResult]:
    """One result per artifact and thread count, in an order that does not depend on the input's."""
    hashes = {a.id: a.sha256 for a in manifest.artifacts}
    newest: dict[tuple[str, int], ProbeResult] = {}
    # Everything is in the key, so that two results of one second have an order too.
    for probe in sorted(probes, key=lambda p: (p.started_utc, repr(p))):
        request = probe.request
        if hashes.get(request.artifact_id) != request.artifact_sha256:
            raise MeasurementInvalid(
                f"A probe measured {request.artifact_id} with sha256 "
                f"{request.artifact_sha256[:12]}, which is not in this bundle.",
                remedy="Probe the bundle again.",
            )
        newest[request.artifact_id, request.threads] = probe
    return [newest[key] for key in sorted(newest)]


def _judge(artifact: Artifact, probe: ProbeResult, budget: Budget, objective: Objective) -> _Judged:
    rss = max(probe.peak_rss_bytes, default=None)
    candidate = Candidate(
        artifact_id=artifact.id,
        runtime=artifact.runtime,
        precision=artifact.precision,
        threads=probe.request.threads,
        p50_ns=None,
        p90_ns=None,
        drop=probe.drop,
        size_bytes=artifact.size_bytes,
        peak_rss_bytes=rss,
        emulated=probe.facts_before.emulated or probe.facts_after.emulated,
        eligible=False,
        reason="",
    )
    if probe.status == "failed":
        why = "runner failed" if probe.error is None else explain.failure_reason(probe.error)
        return _Judged(replace(candidate, reason=why))
    try:
        estimates = {n: stats.estimate(probe.latency_ns, q) for n, q in _QUANTILES.items()}
    except MeasurementInvalid as error:
        return _Judged(replace(candidate, reason=f"no latency: {error.message}"))
    why = "; ".join(explain.over_budget(candidate, budget, probe.golden))
    candidate = replace(
        candidate,
        p50_ns=estimates["p50"].interval(),
        p90_ns=estimates["p90"].interval(),
        eligible=not why,
        reason=why,
        fps=None
        if candidate.emulated
        else stats.frame_rate(probe.latency_ns, probe.request.fps_mode),
    )
    return _Judged(candidate, estimates[objective])


def _not_probed(
    manifest: Manifest, results: Sequence[ProbeResult], failures: Sequence[CandidateFailure]
) -> list[_Judged]:
    """Candidates that have no result: thread count 0, and why."""
    probed = {p.request.artifact_id for p in results}
    why = {f.candidate: f for f in sorted(failures, key=repr)}
    found = []
    for artifact in manifest.artifacts:
        if artifact.id not in probed:
            failure = why.get(artifact.id)
            reason = "not probed" if failure is None else explain.failure_reason(failure)
            found.append(_unprobed(artifact.id, artifact.runtime, artifact.precision, reason))
            found[-1] = replace(found[-1], size_bytes=artifact.size_bytes)
    known = {a.id for a in manifest.artifacts}
    for failure in why.values():
        if failure.candidate not in known:
            precision: Precision = "fp32" if "fp32" in failure.candidate else "int8"
            reason = explain.failure_reason(failure)
            found.append(_unprobed(failure.candidate, failure.runtime, precision, reason))
    return [_Judged(candidate) for candidate in found]


def _unprobed(name: str, runtime: str, precision: Precision, reason: str) -> Candidate:
    return Candidate(
        artifact_id=name,
        runtime=runtime,
        precision=precision,
        threads=0,
        p50_ns=None,
        p90_ns=None,
        drop=None,
        size_bytes=0,
        peak_rss_bytes=None,
        emulated=False,
        eligible=False,
        reason=reason,
    )


def _in_the_running(eligible: list[_Judged]) -> list[_Judged]:
    measured = [j for j in eligible if not j.candidate.emulated]
    return measured or eligible


def _beaten_by(judged: _Judged, pool: Sequence[_Judged]) -> _Judged | None:
    """The fastest of those that are faster than this one beyond doubt and beyond the noise floor.

    Everyone is asked, not just the fastest: a noisy fastest would tie with all, and then a
    candidate could win on memory that another one clearly beats.
    """
    faster = (j for j in pool if _verdict(j, judged) == "faster")
    return min(faster, key=_value, default=None)


def _verdict(a: _Judged, b: _Judged) -> str:
    assert a.estimate is not None and b.estimate is not None
    return stats.compare_estimates(a.estimate, b.estimate).verdict


def _value(judged: _Judged) -> tuple[float, str, int]:
    assert judged.estimate is not None
    return (judged.estimate.log_value, judged.candidate.artifact_id, judged.candidate.threads)


def _rank(c: Candidate, objective: Objective) -> tuple[bool, bool, float, str, int]:
    interval = explain.latency(c, objective)
    value = interval.value if interval is not None and c.eligible else math.inf
    return (not c.eligible, c.emulated, value, c.artifact_id, c.threads)


def _explain(
    judged: _Judged,
    chosen: _Judged | None,
    pool: Sequence[_Judged],
    ties: Sequence[_Judged],
    objective: Objective,
) -> Candidate:
    """The candidate with its reason filled in, where it is eligible."""
    candidate = judged.candidate
    if chosen is None or not candidate.eligible:
        return candidate
    best = chosen.candidate
    if judged == chosen:
        reason = "chosen: fastest within the budget"
        if len(ties) > 1:
            reason = (
                f"chosen: tied as fastest, {explain.advantage(best, [j.candidate for j in ties])}"
            )
    elif judged in ties:
        reason = f"tied with the chosen; {explain.disadvantage(candidate, best)}"
    elif judged in pool:
        beater = _beaten_by(judged, pool)
        assert beater is not None
        reason = explain.slower(candidate, beater.candidate, objective)
        if beater != chosen:
            other = beater.candidate
            reason += f" of {other.artifact_id}, {explain.threads_text(other.threads)}"
    else:
        reason = "emulated: does not count beside measured results"
    return replace(candidate, reason=reason)
