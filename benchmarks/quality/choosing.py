"""What edgekit's selector makes of our artifacts on this machine, runtime by runtime.

Everything that it is told comes from the set for decisions and from the timed rounds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.quality.records import Choice
from edgekit.bundle import Bundle
from edgekit.select import select
from edgekit.targets.device import connect
from edgekit.targets.runner import RunnerReport
from edgekit.types import (
    Artifact,
    Budget,
    DeviceFacts,
    EvalResult,
    GoldenCheck,
    ProbeRequest,
    ProbeResult,
    Selection,
    Target,
)


def this_machine(workdir: Path) -> DeviceFacts:
    """The facts that a probe of this machine would have."""
    with connect(Target("local", "local", "", workdir=str(workdir))) as device:
        return device.facts()


def probe_results(
    bundle: Bundle, reports: Mapping[str, Sequence[RunnerReport]], facts: DeviceFacts
) -> list[ProbeResult]:
    """The rounds as the probe results of the artifacts that were timed."""
    judged = {
        result.artifact_id: result
        for evaluation in bundle.manifest.evals
        if evaluation.role == "choose"
        for result in evaluation.results
    }
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return [
        _result(artifact, reports[artifact.id], judged[artifact.id], facts, started)
        for artifact in bundle.manifest.artifacts
        if artifact.id in reports
    ]


def best_int8(
    bundle: Bundle, probes: Sequence[ProbeResult], runtime: str, max_drop: float
) -> tuple[str, str] | None:
    """The INT8 artifact of a runtime that the selector takes, and a note.

    Where none keeps the budget, it is the one that loses least, and the note says so; None where
    there is no INT8 artifact at all.
    """
    ids = [a.id for a in bundle.manifest.artifacts if (a.runtime, a.precision) == (runtime, "int8")]
    timed = [probe for probe in probes if probe.request.artifact_id in ids]
    if not timed:
        return None
    selection = _select(bundle, timed, ids, max_drop)
    if selection.chosen is not None:
        others = len(ids) - 1
        note = f"chosen of {len(ids)} INT8 variants" if others else ""
        return selection.candidates[selection.chosen].artifact_id, note
    least = min(timed, key=lambda probe: float("inf") if probe.drop is None else probe.drop)
    reasons = {c.artifact_id: c.reason for c in selection.candidates}
    found = least.request.artifact_id
    return found, f"not within the budget: {reasons[found]}"


def choice(
    bundle: Bundle, probes: Sequence[ProbeResult], runtime: str, max_drop: float
) -> Choice | None:
    """What the selector takes of all artifacts of a runtime; None where none keeps the budget."""
    ids = [a.id for a in bundle.manifest.artifacts if a.runtime == runtime]
    timed = [probe for probe in probes if probe.request.artifact_id in ids]
    if not timed:
        return None
    selection = _select(bundle, timed, ids, max_drop)
    if selection.chosen is None:
        return None
    chosen = selection.candidates[selection.chosen]
    return Choice(runtime, chosen.artifact_id, chosen.precision, selection.rule)


def _select(
    bundle: Bundle, probes: Sequence[ProbeResult], ids: Sequence[str], max_drop: float
) -> Selection:
    kept = tuple(a for a in bundle.manifest.artifacts if a.id in ids)
    return select(replace(bundle.manifest, artifacts=kept), probes, Budget(max_drop))


def _result(
    artifact: Artifact,
    reports: Sequence[RunnerReport],
    judged: EvalResult,
    facts: DeviceFacts,
    started: str,
) -> ProbeResult:
    checks = tuple(
        # The device is the host here, so against the host's own outputs there is nothing to lose.
        GoldenCheck(one.output, one.sqnr_db, one.max_abs_err, 200.0, 0.0)
        for one in judged.outputs
    )
    return ProbeResult(
        schema=1,
        request=ProbeRequest(artifact.id, artifact.sha256, 1, len(reports), 0.0),
        target="local",
        status="ok",
        error=None,
        facts_before=facts,
        facts_after=facts,
        load_ns=tuple(report.load_ns for report in reports),
        first_ns=tuple(report.first_ns for report in reports),
        latency_ns=tuple(report.latency_ns for report in reports),
        peak_rss_bytes=tuple(report.peak_rss_bytes for report in reports),
        golden=checks,
        golden_n=0,
        top1_agreement=judged.top1_agreement,
        drop=judged.drop,
        runner_version=reports[0].runner_version,
        runtime_version=reports[0].runtime_version,
        started_utc=started,
    )
