"""Measures artifacts on a device: an interleaved schedule in, one ProbeResult per request out.

The whole schedule is one job on the device, so that a lost connection costs no measurement: the job
goes on, and whoever asks for the same job next receives what it found.
"""

from __future__ import annotations

import contextlib
import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekit.bundle import Bundle
from edgekit.errors import DeviceError, EdgekitError, LinkLost, RunnerFailed, UsageError
from edgekit.progress import Progress, Stage
from edgekit.targets import deploy, golden
from edgekit.targets.channel import Channel
from edgekit.targets.deploy import PushReport
from edgekit.targets.facts import parse_facts
from edgekit.targets.job import fetch, follow, job_id, list_jobs, run_job
from edgekit.targets.results import Candidate, runner_exit
from edgekit.targets.runner import RunnerArguments, RunnerReport, judge, spec
from edgekit.targets.runtimes import Runtime
from edgekit.types import Artifact, DeviceFacts, ProbeRequest, ProbeResult

MIN_RUNS = 10
MAX_RUNS = 10_000
#: Warm-up ends when it is steady; this bounds it for a device that never is.
MIN_WARMUP_S = 1.0


@dataclass(frozen=True, slots=True)
class Step:
    """One process of the schedule; ``round`` None replays the golden samples untimed."""

    candidate: int
    round: int | None


def schedule(requests: Sequence[ProbeRequest], seed: int) -> list[Step]:
    """All golden replays, then rounds: round r holds process r of every candidate that has one, in
    an order drawn anew for each round. So a slow drift of the device meets all candidates alike."""
    draw = random.Random(seed)
    steps = [Step(index, None) for index in range(len(requests))]
    for number in range(max((request.processes for request in requests), default=0)):
        taking_part = [i for i, request in enumerate(requests) if request.processes > number]
        draw.shuffle(taking_part)
        steps += [Step(index, number) for index in taking_part]
    return steps


@dataclass(frozen=True)
class Setting:
    """What a probe needs to know about the device.

    ``unusable`` says of runtimes why they cannot be brought there; ``gate`` is the agent's
    temperature gate, empty for none; ``timeout_s`` bounds each process beside its timed loop;
    ``wait_s`` is how long to wait for a device that is busy.
    """

    runtimes: Mapping[str, Runtime]
    unusable: Mapping[str, EdgekitError]
    gate: Mapping[str, float]
    timeout_s: float
    wait_s: float


def probe(
    channel: Channel,
    bundle: Bundle,
    requests: Sequence[ProbeRequest],
    setting: Setting,
    *,
    seed: int,
    on_push: Callable[[PushReport], None],
    on_job: Callable[[str], None],
    on_result: Callable[[ProbeResult], None],
    progress: Progress,
) -> list[ProbeResult]:
    """Measures all requests; see :meth:`edgekit.targets.device.Device.probe`."""
    artifacts = [_artifact(bundle, request) for request in requests]
    if not requests:
        return []
    candidates = [
        Candidate(channel.name, request, artifact)
        for request, artifact in zip(requests, artifacts, strict=True)
    ]
    for candidate in candidates:
        if error := setting.unusable.get(candidate.artifact.runtime):
            candidate.fail(error)
    before = parse_facts(channel.call("facts").object_of("facts"))
    for candidate in candidates:
        if candidate.failure is not None:
            on_result(candidate.result(before))
    order = [s for s in schedule(requests, seed) if candidates[s.candidate].failure is None]
    if order:
        report = _Reporter(candidates, before, on_result)
        _measure(channel, bundle, candidates, order, setting, on_push, on_job, report, progress)
    return [candidate.result(before) for candidate in candidates]


class _Reporter:
    """Passes on a result as soon as it is final."""

    def __init__(
        self,
        candidates: Sequence[Candidate],
        before: DeviceFacts,
        on_result: Callable[[ProbeResult], None],
    ) -> None:
        self._before = before
        self._on_result = on_result
        self._left = [candidate for candidate in candidates if candidate.failure is None]

    def final(self, candidate: Candidate) -> None:
        self._left.remove(candidate)
        self._on_result(candidate.result(self._before))

    def open(self) -> list[Candidate]:
        """The candidates that have no final result yet."""
        return list(self._left)


def _measure(
    channel: Channel,
    bundle: Bundle,
    candidates: Sequence[Candidate],
    order: Sequence[Step],
    setting: Setting,
    on_push: Callable[[PushReport], None],
    on_job: Callable[[str], None],
    report: _Reporter,
    progress: Progress,
) -> None:
    steps = _agent_steps(bundle, candidates, order, setting)
    job = job_id(steps, setting.gate)
    artifacts = [candidates[step.candidate].artifact for step in order]
    used = {artifact.runtime: setting.runtimes[artifact.runtime] for artifact in artifacts}
    blobs = deploy.bundle_blobs(bundle, artifacts)
    blobs += [blob for runtime in used.values() for blob in deploy.runtime_blobs(runtime)]
    with channel.locked(
        "probe",
        progress=progress,
        wait_s=setting.wait_s,
        job=job,
    ) as held:
        # Hashed on the device, for a damaged file must neither be measured nor lose to others.
        on_push(deploy.push(held, blobs, progress=progress))
        for runtime in used.values():
            deploy.place_runtime(held, runtime)
        on_job(job)
        with progress.stage(f"probe on {channel.name}", len(steps)) as stage:
            run_job(held, job, steps, setting.gate, _Watch(order, candidates, stage, report).event)
        _conclude(held, bundle, candidates, order, job, report)


def _conclude(
    channel: Channel,
    bundle: Bundle,
    candidates: Sequence[Candidate],
    order: Sequence[Step],
    job: str,
    report: _Reporter,
) -> None:
    """Fetches the outputs of a job that has ended, makes the open results final, and forgets it."""
    replays = {id(candidates[s.candidate]): i for i, s in enumerate(order) if s.round is None}
    for candidate in report.open():
        try:
            if not candidate.complete:
                raise _lost(candidate.what)
            n = bundle.manifest.golden.n
            outputs = fetch(channel, job, replays[id(candidate)], candidate.artifact, n)
            candidate.replayed = golden.compare(bundle, candidate.artifact, outputs)
        except LinkLost:
            raise
        except DeviceError as error:
            candidate.fail(error)
        report.final(candidate)
    channel.call("forget", job=job)


def collect(
    channel: Channel,
    bundle: Bundle,
    requests: Sequence[ProbeRequest],
    setting: Setting,
    job: str,
    *,
    seed: int,
    on_result: Callable[[ProbeResult], None],
    progress: Progress,
) -> list[ProbeResult]:
    """What a job found that has ended; see :meth:`edgekit.targets.device.Device.fetch`."""
    candidates = [Candidate(channel.name, r, _artifact(bundle, r)) for r in requests]
    for candidate in candidates:
        if error := setting.unusable.get(candidate.artifact.runtime):
            candidate.fail(error)
    order = [s for s in schedule(requests, seed) if candidates[s.candidate].failure is None]
    steps = _agent_steps(bundle, candidates, order, setting)
    if job_id(steps, setting.gate) != job:
        raise UsageError(
            f"{channel.name}: what was measured there was asked for by another version of edgekit, "
            "of a runtime, or of the target's settings.",
            remedy="Measure again: `edgekit probe`.",
        )
    state = next((one for one in list_jobs(channel) if one.id == job), None)
    if state is None:
        raise UsageError(f"{channel.name} has no results of that measurement any more.")
    if state.state == "running":
        raise DeviceError(
            f"{channel.name} still measures: {state.done} of {state.steps} processes are done.",
            remedy="Try again later.",
        )
    before = parse_facts(channel.call("facts").object_of("facts"))
    for candidate in candidates:
        if candidate.failure is not None:
            on_result(candidate.result(before))
    report = _Reporter(candidates, before, on_result)
    with progress.stage(f"fetch from {channel.name}", len(steps)) as stage:
        follow(channel, job, steps, setting.gate, _Watch(order, candidates, stage, report).event)
    _conclude(channel, bundle, candidates, order, job, report)
    return [candidate.result(before) for candidate in candidates]


def _agent_steps(
    bundle: Bundle, candidates: Sequence[Candidate], order: Sequence[Step], setting: Setting
) -> list[dict[str, Any]]:
    """The schedule in the agent's terms; facts are gathered before a candidate's first process and
    after its last."""
    steps = []
    last = {step.candidate: index for index, step in enumerate(order)}
    for index, step in enumerate(order):
        one = candidates[step.candidate]
        steps.append(agent_step(bundle, one.artifact, one.request, step, setting))
        steps[-1].update(first=step.round is None, last=index == last[step.candidate])
    return steps


class _Watch:
    """Hands the job's events to the candidates that they are about."""

    def __init__(
        self,
        order: Sequence[Step],
        candidates: Sequence[Candidate],
        stage: Stage,
        report: _Reporter,
    ) -> None:
        self._order = order
        self._candidates = candidates
        self._stage = stage
        self._report = report
        self._left = [sum(s.candidate == i for s in order) for i in range(len(candidates))]
        self._seen: set[int] = set()

    def event(self, event: dict[str, Any]) -> None:
        index = event.get("index")
        if event.get("event") != "step" or not isinstance(index, int):
            return
        if not 0 <= index < len(self._order) or index in self._seen:
            raise DeviceError(f"The device reported a step {index} that nobody asked for.")
        self._seen.add(index)
        number = self._order[index].candidate
        candidate = self._candidates[number]
        if candidate.failure is not None:
            return
        candidate.take(event, replay=self._order[index].round is None)
        self._left[number] -= 1
        candidate.complete = self._left[number] == 0
        # The remaining steps of a failed candidate are not run.
        done = 1 + (self._left[number] if candidate.failure is not None else 0)
        self._stage.advance(done, candidate.what)
        if candidate.failure is not None:
            self._report.final(candidate)


def _lost(what: str) -> RunnerFailed:
    return RunnerFailed(
        f"{what}: the measuring process on the device ended before its time.",
        kind="lost",
        remedy="Look there for a reboot or a full memory, then probe again.",
    )


def agent_step(
    bundle: Bundle, artifact: Artifact, request: ProbeRequest, step: Step, setting: Setting
) -> dict[str, Any]:
    """One step in the agent's terms: hashes and flags, no paths."""
    replay = step.round is None
    arguments = RunnerArguments(
        model="",
        threads=request.threads,
        samples=bundle.manifest.golden.n if replay else 1,
        specs=tuple(spec(tensor.dtype, tensor.shape) for tensor in artifact.inputs),
        warmup_s=max(MIN_WARMUP_S, request.budget_s),
        budget_s=0.0 if replay else request.budget_s,
        min_runs=MIN_RUNS,
        max_runs=MAX_RUNS,
    )
    return {
        "key": str(step.candidate),
        "runtime": setting.runtimes[artifact.runtime].folder,
        "model": artifact.sha256,
        "inputs": [tensor.sha256 for tensor in bundle.manifest.golden.inputs],
        "outputs": len(artifact.outputs) if replay else 0,
        "flags": arguments.flags(),
        "timeout_s": setting.timeout_s + 2 * request.budget_s,
    }


def replay(
    held: Channel, bundle: Bundle, artifact: Artifact, threads: int, setting: Setting
) -> golden.Replayed:
    """Runs the golden samples once on the device, untimed, and compares.

    Raises:
        RunnerFailed: the artifact does not run there.
    """
    request = ProbeRequest(artifact.id, artifact.sha256, threads, 0, 0.0)
    step = agent_step(bundle, artifact, request, Step(0, None), setting)
    job = secrets.token_hex(12)  # not its content's: a health check is never an older one's
    ended: list[RunnerReport] = []
    what = f"{artifact.id} ({threads} threads)"

    def event(event: dict[str, Any]) -> None:
        if event.get("event") == "step" and not ended:
            ended.append(judge(runner_exit(event), what=what))

    n = bundle.manifest.golden.n
    try:
        run_job(held, job, [step], {}, event)
        if not ended:
            raise _lost(what)
        found = [(tensor.dtype, tensor.shape) for tensor in ended[0].outputs]
        if problem := golden.layout_problem(artifact, found):
            raise RunnerFailed(f"{what}: {problem}.", kind="model")
        return golden.compare(bundle, artifact, fetch(held, job, 0, artifact, n))
    finally:
        with contextlib.suppress(DeviceError):
            held.call("forget", job=job)


def _artifact(bundle: Bundle, request: ProbeRequest) -> Artifact:
    artifact = bundle.artifact(request.artifact_id)
    if artifact.sha256 != request.artifact_sha256:
        raise UsageError(f"The probe of {artifact.id} was asked for another version of its file.")
    return artifact
