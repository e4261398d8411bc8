"""From a bundle to a decision on a device: push, probe, select, activate.

What was measured is written to a run folder as it arrives. :func:`deploy` measures anew each time;
:func:`run` first looks for a run of the same bundle with the same settings on the same device.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit import results
from edgekit.bundle import Bundle
from edgekit.config import DeviceConfig, ProbeConfig, ProjectConfig
from edgekit.errors import EdgekitError, LinkLost, UsageError
from edgekit.pipeline import pending
from edgekit.pipeline.pending import Pending
from edgekit.pipeline.quantizing import QuantizeOutcome, quantize
from edgekit.progress import Progress, Quiet
from edgekit.results import RunDir, RunRecord
from edgekit.select import select
from edgekit.targets.deploy import PushReport
from edgekit.targets.device import Device, connect
from edgekit.targets.profile import thread_counts
from edgekit.types import (
    Activation,
    CandidateFailure,
    DeviceFacts,
    FpsMode,
    ProbeRequest,
    ProbeResult,
    Selection,
    Target,
)

#: Kinds of failure that an artifact meets on a device each time.
_SETTLED = ("signal", "model", "runtime")


@dataclass(frozen=True)
class DeployOutcome:
    """What deploying gave.

    Attributes:
        record: the run: probes, failures, selection.
        activation: what is active now; None where nothing was activated.
        pushed: what was sent; None where nothing was measured.
        reused: True where an earlier run answered and nothing was measured.
        seconds: wall time.
    """

    record: RunRecord
    activation: Activation | None
    pushed: PushReport | None
    reused: bool
    seconds: float

    @property
    def selection(self) -> Selection:
        assert self.record.selection is not None
        return self.record.selection


@dataclass(frozen=True)
class RunOutcome:
    """What ``run`` gave: the bundle, and one deploy per target."""

    quantized: QuantizeOutcome
    deploys: tuple[DeployOutcome, ...]


def probe(
    bundle: Bundle,
    target: Target,
    config: DeviceConfig,
    *,
    artifacts: Sequence[str] = (),
    progress: Progress | None = None,
) -> DeployOutcome:
    """Push and measure, select, but activate nothing. ``artifacts`` limits it to some ids.

    Raises:
        DeviceError: the device cannot be reached or is unfit.
    """
    return _deploy(bundle, target, config, artifacts, False, True, progress or Quiet())


def deploy(
    bundle: Bundle,
    target: Target,
    config: DeviceConfig,
    *,
    activate: bool = True,
    progress: Progress | None = None,
) -> DeployOutcome:
    """Push, measure, select and, unless told otherwise, activate what was selected.

    Raises:
        DeviceError: the device cannot be reached or is unfit.
        DeployRolledBack: the selected artifact failed its health check on the device.
    """
    return _deploy(bundle, target, config, (), activate, True, progress or Quiet())


def run(
    project: ProjectConfig,
    targets: Sequence[Target],
    *,
    activate: bool = True,
    fresh: bool = False,
    progress: Progress | None = None,
) -> RunOutcome:
    """Quantize and deploy; steps whose inputs did not change are not done again.

    Args:
        project: what to make and how to judge it.
        targets: where to deploy it, one after the other.
        activate: switch each device to what was selected.
        fresh: measure again even where an earlier run answers.

    Raises:
        EdgekitError: as :func:`edgekit.pipeline.quantize` and :func:`deploy`.
    """
    shown = progress or Quiet()
    quantized = quantize(project, progress=shown)
    deploys = [
        _deploy(quantized.bundle, target, project.device, (), activate, fresh, shown)
        for target in targets
    ]
    return RunOutcome(quantized, tuple(deploys))


def _deploy(
    bundle: Bundle,
    target: Target,
    config: DeviceConfig,
    artifacts: Sequence[str],
    activate: bool,
    fresh: bool,
    progress: Progress,
) -> DeployOutcome:
    started = time.monotonic()
    pushed: PushReport | None = None
    activation: Activation | None = None
    with connect(target, progress=progress) as device:
        probe, facts = config.probe, device.facts()
        if not probe.threads:
            probe = replace(probe, threads=thread_counts(device.profile, facts))
        if facts.emulated:
            probe = replace(probe, threads=(min(probe.threads),), processes=1)
            progress.log(f"{target.name} is emulated: every artifact is run once there, to see it "
                         "run and agree; its times would be no board's.")  # fmt: skip
        fps_mode = device.profile.fps_mode if device.profile else "burst"
        requests = _requests(bundle, probe, artifacts, fps_mode)
        earlier = None if fresh else _find_run(config.runs, bundle, target, requests, device)
        if earlier is not None:
            progress.log(f"Measured before, in {earlier.path.name}; nothing has changed since.")
            selection = _select(earlier, config)
            if selection != earlier.selection:
                RunDir(earlier.path).write_selection(selection)
            record = replace(earlier, selection=selection)
        else:
            record, pushed = _measure(device, bundle, target, config, requests, progress)
        assert record.selection is not None
        if activate and record.selection.chosen is not None:
            chosen = record.selection.candidates[record.selection.chosen]
            activation = _active(device, bundle, chosen.artifact_id, chosen.threads)
            if activation is None:
                with progress.stage("Check on the device and activate"):
                    activation = device.activate(bundle, chosen.artifact_id, chosen.threads)
    return DeployOutcome(
        record=record,
        activation=activation,
        pushed=pushed,
        reused=earlier is not None,
        seconds=time.monotonic() - started,
    )


def _requests(
    bundle: Bundle, probe: ProbeConfig, artifacts: Sequence[str], fps_mode: FpsMode
) -> list[ProbeRequest]:
    chosen = [bundle.artifact(name) for name in artifacts] or list(bundle.manifest.artifacts)
    if not chosen:
        raise UsageError("The bundle holds no artifact.", remedy="Make it again.")
    return [
        ProbeRequest(
            artifact_id=artifact.id,
            artifact_sha256=artifact.sha256,
            threads=threads,
            processes=probe.processes,
            budget_s=probe.budget_s,
            fps_mode=fps_mode,
        )
        for artifact in chosen
        for threads in probe.threads
    ]


def _measure(
    device: Device,
    bundle: Bundle,
    target: Target,
    config: DeviceConfig,
    requests: Sequence[ProbeRequest],
    progress: Progress,
) -> tuple[RunRecord, PushReport | None]:
    pushed: PushReport | None = None
    note: Pending | None = None
    recording = Recording(bundle, target, config, progress)

    def keep_push(report: PushReport) -> None:
        nonlocal pushed
        pushed = report

    def keep_job(job: str) -> None:
        nonlocal note
        place, now = str(bundle.path.absolute()), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        seed = config.probe.seed
        note = Pending(1, target.name, place, bundle.digest, tuple(requests), seed, job, now)
        pending.save(config.runs, note)

    try:
        device.probe(
            bundle,
            requests,
            seed=config.probe.seed,
            on_push=keep_push,
            on_job=keep_job,
            on_result=recording.keep,
            progress=progress,
        )
    except LinkLost:
        raise  # it goes on there; the note is what finds it again
    except BaseException:
        if note is not None:
            pending.drop(config.runs, note)
        raise
    record = recording.finish()
    if note is not None:
        pending.drop(config.runs, note)
    return record, pushed


class Recording:
    """Writes what a device measured to a run folder, as it arrives."""

    def __init__(
        self, bundle: Bundle, target: Target, config: DeviceConfig, progress: Progress
    ) -> None:
        self._bundle = bundle
        self._target = target
        self._config = config
        self._progress = progress
        self._failures = list(bundle.recipe_log.failures)
        self._folder: RunDir | None = None

    def keep(self, result: ProbeResult) -> None:
        """Takes one result."""
        # No folder earlier: what is interrupted before its first result is no run.
        if self._folder is None:
            manifest_json = self._bundle.file("manifest.json").read_bytes()
            model = self._bundle.manifest.model.name
            self._folder = RunDir.create(self._config.runs, model, self._target.name, manifest_json)
        self._folder.append_probe(result)
        if result.error is not None:
            self._failures.append(result.error)
            self._progress.log(f"{result.error.candidate} failed: {result.error.message}")

    def finish(self) -> RunRecord:
        """The whole run, with its selection."""
        assert self._folder is not None, "every request gives a result"
        self._folder.write_failures(self._failures)
        record = results.load(self._folder.path)
        selection = _select(record, self._config)
        self._folder.write_selection(selection)
        return replace(record, selection=selection)


def _select(record: RunRecord, config: DeviceConfig) -> Selection:
    return select(
        record.manifest, record.probes, config.budget, config.probe.objective, record.failures
    )


def _find_run(
    runs: Path,
    bundle: Bundle,
    target: Target,
    requests: Sequence[ProbeRequest],
    device: Device,
) -> RunRecord | None:
    """The newest whole run of this bundle, with these settings, on this device as it is now."""
    facts: DeviceFacts | None = None
    for name in reversed(results.run_names(runs)):
        try:
            record = results.load(runs / name)
        except EdgekitError:
            # A damaged record is no reason to fail; it is only no answer.
            continue
        if (
            record.target != target.name
            or record.manifest != bundle.manifest
            or {probe.request for probe in record.probes} != set(requests)
            or not all(_is_settled(probe) for probe in record.probes)
        ):
            continue
        facts = facts or device.facts()
        if all(_same_device(facts, probe.facts_before) for probe in record.probes):
            return record
    return None


def _is_settled(probe: ProbeResult) -> bool:
    """Whether measuring again would give the same; a lost link or a full memory may pass."""
    return probe.error is None or probe.error.kind in _SETTLED


def _same_device(a: DeviceFacts, b: DeviceFacts) -> bool:
    def stable(facts: DeviceFacts) -> tuple[object, ...]:
        return (
            facts.model,
            facts.arch,
            facts.os,
            facts.kernel,
            facts.python,
            facts.cpu_features,
            facts.cpu_count,
            facts.governor,
            facts.emulated,
        )

    return stable(a) == stable(b)


def _active(device: Device, bundle: Bundle, artifact_id: str, threads: int) -> Activation | None:
    """The device's activation, if it already is this artifact of this bundle and undamaged."""
    status = device.status(verify=True, model=bundle.manifest.model.name)
    if status.problems:
        return None  # to activate it again mends it
    for active in status.activations:
        if (
            bundle.digest.startswith(active.release)
            and active.artifact_id == artifact_id
            and active.threads == threads
        ):
            return active
    return None


def all_failures(outcome: RunOutcome) -> tuple[CandidateFailure, ...]:
    """Every failed candidate of a run, once: an earlier log of the same crash adds nothing."""
    found: dict[CandidateFailure, CandidateFailure] = {}
    recorded = (failure for one in outcome.deploys for failure in one.record.failures)
    for failure in (*outcome.quantized.failures, *recorded):
        found.setdefault(replace(failure, log_tail=()), failure)
    return tuple(found.values())
