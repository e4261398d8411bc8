"""Gathers what a device reports about one candidate into a ProbeResult."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekit.errors import EdgekitError, RunnerFailed
from edgekit.targets import golden
from edgekit.targets.answer import printable
from edgekit.targets.facts import parse_facts
from edgekit.targets.runner import RunnerExit, RunnerReport, judge
from edgekit.types import Artifact, CandidateFailure, DeviceFacts, ProbeRequest, ProbeResult


@dataclass(eq=False)
class Candidate:
    """One artifact at one thread count while it is being measured."""

    target: str
    request: ProbeRequest
    artifact: Artifact
    failure: CandidateFailure | None = None
    complete: bool = False
    replayed: golden.Replayed | None = None
    _reports: list[RunnerReport] = field(default_factory=list)
    _version: RunnerReport | None = None
    _before: DeviceFacts | None = None
    _after: DeviceFacts | None = None
    _started_utc: str = ""

    @property
    def what(self) -> str:
        """The candidate as messages name it."""
        threads = self.request.threads
        return f"{self.artifact.id} ({threads} thread{'s' if threads != 1 else ''})"

    def take(self, event: Mapping[str, Any], *, replay: bool) -> None:
        """Takes the agent's report of one process, which may be that it failed."""
        self._started_utc = self._started_utc or printable(str(event.get("started_utc", "")))[:40]
        if isinstance(event.get("facts_before"), dict):
            self._before = parse_facts(event["facts_before"])
        if isinstance(event.get("facts_after"), dict):
            self._after = parse_facts(event["facts_after"])
        try:
            report = judge(runner_exit(event), what=self.what)
            if report.threads != self.request.threads:
                raise RunnerFailed(f"{self.what}: it ran {report.threads} threads.", kind="usage")
            layout = [(tensor.dtype, tensor.shape) for tensor in report.outputs]
            if problem := golden.layout_problem(self.artifact, layout):
                raise RunnerFailed(f"{self.what}: {problem}.", kind="model")
            if not replay and not report.latency_ns:
                raise RunnerFailed(f"{self.what}: it reported no latencies.", kind="exit")
        except RunnerFailed as error:
            self.fail(error)
            return
        self._version = report
        if not replay:
            self._reports.append(report)

    def fail(self, error: EdgekitError) -> None:
        """Records why this candidate is out; the others go on."""
        self.failure = CandidateFailure(
            candidate=self.artifact.id,
            runtime=self.artifact.runtime,
            stage="probe",
            kind=error.kind if isinstance(error, RunnerFailed) else "runtime",
            message=error.message,
            remedy=error.remedy,
            log_tail=error.log_tail if isinstance(error, RunnerFailed) else (),
        )

    def result(self, facts: DeviceFacts) -> ProbeResult:
        """The result so far; ``facts`` stand in where the device told none around the processes."""
        replayed = self.replayed
        before = self._before or facts
        return ProbeResult(
            schema=1,
            request=self.request,
            target=self.target,
            status="ok" if self.failure is None else "failed",
            error=self.failure,
            facts_before=before,
            facts_after=self._after or before,
            load_ns=tuple(report.load_ns for report in self._reports),
            first_ns=tuple(report.first_ns for report in self._reports),
            latency_ns=tuple(report.latency_ns for report in self._reports),
            peak_rss_bytes=tuple(report.peak_rss_bytes for report in self._reports),
            golden=replayed.checks if replayed else (),
            golden_n=replayed.n if replayed else 0,
            top1_agreement=replayed.top1_agreement if replayed else None,
            drop=replayed.drop if replayed else None,
            runner_version=self._version.runner_version if self._version else "",
            runtime_version=self._version.runtime_version if self._version else "",
            started_utc=self._started_utc or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )


def runner_exit(event: Mapping[str, Any]) -> RunnerExit:
    """How a step's process ended, from the agent's event; nothing in it is taken for granted."""
    code = event.get("returncode")
    return RunnerExit(
        returncode=code if isinstance(code, int) else 127,
        stdout=str(event.get("stdout", "")),
        stderr=printable(str(event.get("stderr", ""))),
        timed_out=event.get("timed_out") is True,
        oom_kill=event.get("oom_kill") is True,
    )
