"""Measures artifacts on a device: an interleaved schedule in, one ProbeResult per request out.

The whole schedule is one job on the device, so that a lost connection costs no measurement: the job
goes on, and whoever asks for the same job next receives what it found. A job's id is the hash of
its content.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import secrets
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.bundle import Bundle
from edgekit.errors import DeviceError, LinkLost, RunnerFailed, UsageError
from edgekit.progress import Progress, Stage
from edgekit.targets import deploy, golden
from edgekit.targets.channel import AgentRefused, Channel
from edgekit.targets.facts import parse_facts
from edgekit.targets.results import Candidate, runner_exit
from edgekit.targets.runner import RunnerArguments, RunnerReport, judge, spec
from edgekit.targets.runtimes import Runtime
from edgekit.types import Artifact, ProbeRequest, ProbeResult

if TYPE_CHECKING:
    import numpy as np

MIN_RUNS = 10
MAX_RUNS = 10_000
#: Warm-up ends when it is steady; this bounds it for a device that never is.
MIN_WARMUP_S = 1.0
FOLLOW_S = 60.0
LINK_RETRIES = 5


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

    ``gate`` is the agent's temperature gate, empty for none; ``timeout_s`` bounds each process
    beside its timed loop; ``wait_s`` is how long to wait for a device that is busy.
    """

    runtimes: Mapping[str, Runtime]
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
    on_result: Callable[[ProbeResult], None],
    progress: Progress,
) -> list[ProbeResult]:
    """Measures all requests; see :meth:`edgekit.targets.device.Device.probe`."""
    artifacts = [_artifact(bundle, request) for request in requests]
    if not requests:
        return []
    order = schedule(requests, seed)
    steps = [
        agent_step(bundle, artifacts[s.candidate], requests[s.candidate], s, setting) for s in order
    ]
    for index, step in enumerate(order):
        same = [i for i, other in enumerate(order) if other.candidate == step.candidate]
        steps[index].update(first=index == same[0], last=index == same[-1])
    job = job_id(steps, setting.gate)
    used = {artifact.runtime: setting.runtimes[artifact.runtime] for artifact in artifacts}
    blobs = deploy.bundle_blobs(bundle, artifacts)
    blobs += [blob for runtime in used.values() for blob in deploy.runtime_blobs(runtime)]
    candidates = [
        Candidate(channel.name, request, artifact)
        for request, artifact in zip(requests, artifacts, strict=True)
    ]
    with channel.locked(
        "probe",
        seconds=deploy.lock_seconds(blobs),
        progress=progress,
        wait_s=setting.wait_s,
        job=job,
    ) as held:
        deploy.push(held, blobs, progress=progress)
        for runtime in used.values():
            deploy.place_runtime(held, runtime)
        before = parse_facts(held.call("facts")["facts"])
        with progress.stage(f"probe on {channel.name}", len(steps)) as stage:
            watch = _Watch(order, candidates, stage, lambda c: on_result(c.result(before)))
            run_job(held, job, steps, setting.gate, watch.event)
        for candidate in candidates:
            if candidate.failure is None and not candidate.complete:
                candidate.fail(_lost(candidate.what))
                on_result(candidate.result(before))
        replays = {s.candidate: i for i, s in enumerate(order) if s.round is None}
        for number, candidate in enumerate(candidates):
            if candidate.failure is None:
                try:
                    outputs = fetch(held, job, replays[number], candidate.artifact, bundle)
                    candidate.replayed = golden.compare(bundle, candidate.artifact, outputs)
                except (RunnerFailed, AgentRefused) as error:
                    candidate.fail(error)
                on_result(candidate.result(before))
        held.call("forget", job=job)
    return [candidate.result(before) for candidate in candidates]


class _Watch:
    """Hands the job's events to the candidates that they are about."""

    def __init__(
        self,
        order: Sequence[Step],
        candidates: Sequence[Candidate],
        stage: Stage,
        on_failure: Callable[[Candidate], None],
    ) -> None:
        self._order = order
        self._candidates = candidates
        self._stage = stage
        self._on_failure = on_failure
        self._left = [sum(s.candidate == i for s in order) for i in range(len(candidates))]

    def event(self, event: dict[str, Any]) -> None:
        index = event.get("index")
        if event.get("event") != "step" or not isinstance(index, int):
            return
        if not 0 <= index < len(self._order):
            raise DeviceError(f"The device reported a step {index} that nobody asked for.")
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
            self._on_failure(candidate)


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


def job_id(steps: Sequence[Mapping[str, Any]], gate: Mapping[str, float]) -> str:
    """The id of a job: the hash of what it does."""
    text = json.dumps([list(steps), dict(gate)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def run_job(
    held: Channel,
    job: str,
    steps: Sequence[Mapping[str, Any]],
    gate: Mapping[str, float],
    on_event: Callable[[dict[str, Any]], None],
) -> None:
    """Starts (or adopts) a job and passes on its events until it ends.

    A lost connection is retried where it stopped. Any other exception, Ctrl-C included, cancels the
    job on the device; a connection that stays lost does not, so that the job can be adopted.

    Raises:
        LinkLost: after LINK_RETRIES attempts.
    """
    try:
        held.call("start", job=job, steps=list(steps), gate=dict(gate))
        offset, lost = 0, 0

        def line(event: dict[str, Any]) -> None:
            nonlocal offset
            reached, content = event.get("offset"), event.get("line")
            if event.get("event") == "line" and isinstance(reached, int) and reached > offset:
                offset = reached
                if isinstance(content, dict):
                    on_event(content)

        while True:
            try:
                answer = held.call(
                    "follow",
                    job=job,
                    offset=offset,
                    wait_s=FOLLOW_S,
                    timeout_s=FOLLOW_S + 60,
                    on_event=line,
                )
            except LinkLost as error:
                lost += 1
                if lost > LINK_RETRIES:
                    raise LinkLost(
                        f"{error.message} The measurement goes on on {held.name}.",
                        remedy="Run the same command again: it fetches what was measured.",
                    ) from error
                time.sleep(min(2.0**lost, 20.0) / 4)
                continue
            lost = 0
            if answer["state"] != "running":
                return
    except LinkLost:
        raise
    except BaseException:
        with contextlib.suppress(DeviceError):  # the reason for stopping is what the caller needs
            held.call("cancel", job=job)
        raise


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
        if event.get("event") == "step":
            ended.append(judge(runner_exit(event), what=what))

    run_job(held, job, [step], {}, event)
    if not ended:
        raise _lost(what)
    problem = golden.layout_problem(artifact, [(t.dtype, t.shape) for t in ended[0].outputs])
    if problem:
        raise RunnerFailed(f"{what}: {problem}.", kind="model")
    replayed = golden.compare(bundle, artifact, fetch(held, job, 0, artifact, bundle))
    held.call("forget", job=job)
    return replayed


def fetch(
    held: Channel, job: str, index: int, artifact: Artifact, bundle: Bundle
) -> list[np.ndarray[Any, Any]]:
    """The raw outputs of a step, each (n, *shape); their sizes come from the bundle alone."""
    import numpy as np

    n = bundle.manifest.golden.n
    arrays: list[np.ndarray[Any, Any]] = []
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        for number, output in enumerate(artifact.outputs):
            local = Path(folder) / f"{number}.raw"
            size = n * output.nbytes
            held.transport.get(f"{held.root}/spool/{job}/{index}-{number}.raw", local, size)
            if local.stat().st_size != size:
                raise RunnerFailed(
                    f"{artifact.id}: output {output.name} has {local.stat().st_size} bytes, "
                    f"not {size}.",
                    kind="exit",
                )
            little = np.dtype(output.dtype).newbyteorder("<")
            # Mapped, not read: the file is gone after this block, its pages are not.
            arrays.append(np.memmap(local, dtype=little, mode="r", shape=(n, *output.shape)))
    return arrays


def _artifact(bundle: Bundle, request: ProbeRequest) -> Artifact:
    artifact = bundle.artifact(request.artifact_id)
    if artifact.sha256 != request.artifact_sha256:
        raise UsageError(f"The probe of {artifact.id} was asked for another version of its file.")
    return artifact
