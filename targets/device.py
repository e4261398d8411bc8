"""A device as the rest of edgekit sees it: connect, push, probe, activate, roll back, clean up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import TracebackType

from edgekit import registry
from edgekit.bundle import Bundle
from edgekit.errors import (
    DeployRolledBack,
    DeviceError,
    EdgekitError,
    MissingExtra,
    RunnerFailed,
    UsageError,
)
from edgekit.progress import Progress, Quiet
from edgekit.resolve import spelled
from edgekit.targets import deploy, golden, runtimes
from edgekit.targets.abi import Abi, device_abi
from edgekit.targets.base import Transport
from edgekit.targets.channel import Channel, open_channel
from edgekit.targets.deploy import PushReport
from edgekit.targets.facts import parse_facts
from edgekit.targets.job import Job, list_jobs
from edgekit.targets.probe import Setting, collect, probe, replay
from edgekit.targets.profile import Profile, load_profile, misfits, unfit
from edgekit.targets.status import DeviceStatus, read_status
from edgekit.types import Activation, Artifact, DeviceFacts, ProbeRequest, ProbeResult, Target

#: A process that takes longer than this, beside its timed loop, hangs.
TIMEOUT_S = 300.0
#: What a board does in seconds takes an emulator minutes.
EMULATED_TIMEOUT_S = 1800.0
#: Longer than the agent takes to call the lock of a vanished owner stale.
LOCK_WAIT_S = 150.0


def connect(target: Target, *, progress: Progress | None = None) -> Device:
    """Opens a connection and puts the agent on the device unless it is there.

    ``target.options`` understood here: ``python`` (the interpreter there), ``timeout_s`` (per
    process), ``lock_wait_s`` (how long to wait for a busy device).

    Raises:
        UsageError: an unknown transport or profile, or an option that is no number.
        DeviceError: the device cannot be reached, no runtime can run there, or it does not fit the
            target's profile.
    """
    device = _opened(target, progress)
    try:
        facts = device.facts()
        why = None if device.abi().host else unfit(facts)
        if why is not None:
            raise DeviceError(f"{target.name} cannot be used: {why[0]}.", remedy=why[1])
        problems = misfits(device.profile, facts) if device.profile else []
        if problems:
            raise DeviceError(
                f"{target.name} does not fit the profile {target.profile}: {'; '.join(problems)}.",
                remedy="Update its system where that is too old; otherwise choose another profile "
                "for this target, or leave it out.",
            )
    except BaseException:
        device.close()
        raise
    return device


def _opened(target: Target, progress: Progress | None = None) -> Device:
    """A connected device, whatever it is."""
    profile = load_profile(target.profile) if target.profile else None
    transport: Transport = registry.load("targets", target.transport)(target)
    try:
        default = sys.executable if target.transport == "local" else "python3"
        channel = open_channel(
            transport,
            name=target.name,
            python=target.options.get("python", default),
            workdir=target.workdir,
        )
    except BaseException:
        transport.close()
        raise
    return Device(target, channel, profile, progress or Quiet())


def survey(target: Target) -> tuple[DeviceFacts, list[str]]:
    """What a device says about itself, and why it does not fit the target's profile.

    Raises:
        UsageError, DeviceError: as in :func:`connect`.
    """
    with _opened(target) as device:
        facts = device.facts()
        why = None if device.abi().host else unfit(facts)
    problems = [] if why is None else [f"{why[0]}. {why[1]}"]
    return facts, problems + (misfits(device.profile, facts) if device.profile else [])


class Device:
    """A connected device; a context manager. Made by :func:`connect`."""

    def __init__(
        self, target: Target, channel: Channel, profile: Profile | None, progress: Progress
    ) -> None:
        self.target = target
        self.channel = channel
        self.profile = profile
        self._progress = progress
        self._abi: Abi | None = None
        self._emulated = False
        self._runtimes: dict[str, runtimes.Runtime] = {}

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection; what is on the device stays."""
        self.channel.transport.close()

    def facts(self) -> DeviceFacts:
        """What the device says about itself now."""
        raw = self.channel.call("facts").object_of("facts")
        facts = parse_facts(raw)
        self._abi = device_abi(facts, raw.get("interpreter"))
        self._emulated = facts.emulated
        return facts

    def abi(self) -> Abi:
        """What decides which files this device can run."""
        if self._abi is None:
            self.facts()
        assert self._abi is not None
        return self._abi

    def runtime(self, name: str) -> runtimes.Runtime:
        """What this device needs for artifacts of a runtime, resolved once; fetches what the cache
        lacks.

        Raises:
            MissingExtra: the host lacks the package.
            DeviceError: there is none for this device, or it cannot be fetched.
        """
        if name not in self._runtimes:
            self._runtimes[name] = runtimes.resolve(
                name,
                self.abi(),
                progress=self._progress,
                command=f"edgekit runtimes fetch --target {spelled(self.target)}",
            )
        return self._runtimes[name]

    def push(
        self, bundle: Bundle, artifact_ids: Sequence[str], *, progress: Progress | None = None
    ) -> PushReport:
        """Brings artifacts, golden inputs and runtimes into the device's store; sends only what it
        lacks. Artifacts of a runtime that this device cannot have are left out; the log says so.

        Raises:
            DeviceError: no space, a busy device, or a transfer that arrived damaged.
            LinkLost: the connection broke; the next push goes on from there.
        """
        progress = progress or self._progress
        setting = self._setting([bundle.artifact(id) for id in artifact_ids])
        for name, error in setting.unusable.items():
            progress.log(f"{name} is left out: {error.message} {error.remedy}".rstrip())
        artifacts = [
            artifact
            for artifact in map(bundle.artifact, artifact_ids)
            if artifact.runtime in setting.runtimes
        ]
        blobs = deploy.bundle_blobs(bundle, artifacts)
        for runtime in setting.runtimes.values():
            blobs += deploy.runtime_blobs(runtime)
        with self._locked("push", progress) as held:
            report = deploy.push(held, blobs, progress=progress)
            for runtime in setting.runtimes.values():
                deploy.place_runtime(held, runtime)
        return report

    def probe(
        self,
        bundle: Bundle,
        requests: Sequence[ProbeRequest],
        *,
        seed: int = 0,
        on_push: Callable[[PushReport], None] = lambda report: None,
        on_job: Callable[[str], None] = lambda job: None,
        on_result: Callable[[ProbeResult], None] = lambda result: None,
        progress: Progress | None = None,
    ) -> list[ProbeResult]:
        """Measures artifacts, each ``processes`` times in a fresh process, interleaved.

        What the device lacks is pushed first. A measurement that goes on there, because we were
        cut off from it, is not waited for but joined, if it is the one that is asked for.

        Args:
            bundle: where the artifacts and the golden vectors are.
            requests: what to measure; one per artifact and thread count.
            seed: of the order within the rounds.
            on_push: told what was sent, before anything is measured.
            on_job: told what :meth:`fetch` has to be asked for, before the device is.
            on_result: called once per request, as soon as its result is final.
            progress: advances by processes.

        Returns:
            One result per request, in order. A candidate that crashed, hung, ran out of memory or
            whose runtime this device cannot have is ``failed``; the others go on.

        Raises:
            UsageError: a request names another version of an artifact's file.
            DeviceError: the device is busy or lacks space.
            LinkLost: the connection stayed lost; the same call later fetches what was measured.
        """
        setting = self._setting([bundle.artifact(request.artifact_id) for request in requests])
        return probe(
            self.channel,
            bundle,
            requests,
            setting,
            seed=seed,
            on_push=on_push,
            on_job=on_job,
            on_result=on_result,
            progress=progress or self._progress,
        )

    def jobs(self) -> list[Job]:
        """The measurements that run on the device, or whose results wait there."""
        return list_jobs(self.channel)

    def fetch(
        self,
        bundle: Bundle,
        requests: Sequence[ProbeRequest],
        job: str,
        *,
        seed: int = 0,
        on_result: Callable[[ProbeResult], None] = lambda result: None,
        progress: Progress | None = None,
    ) -> list[ProbeResult]:
        """What a measurement found that an earlier :meth:`probe` started and was cut off from.

        Nothing is started or pushed. Candidates that the device had not come to when it was
        restarted are ``failed``.

        Args:
            bundle, requests, seed, on_result, progress: as they were, or as they are, in
                :meth:`probe`.
            job: what ``on_job`` was told.

        Raises:
            UsageError: there are no such results.
            DeviceError: the device measures still.
        """
        setting = self._setting([bundle.artifact(request.artifact_id) for request in requests])
        return collect(
            self.channel,
            bundle,
            requests,
            setting,
            job,
            seed=seed,
            on_result=on_result,
            progress=progress or self._progress,
        )

    def activate(
        self,
        bundle: Bundle,
        artifact_id: str,
        threads: int,
        *,
        progress: Progress | None = None,
    ) -> Activation:
        """Releases a bundle with this artifact, checks it on the device, and switches to it.

        The golden inputs are replayed by the release's own runtime before the switch. What is
        active already is checked again and left as it is.

        Raises:
            DeployRolledBack: the health check failed; what was active before stays active.
            DeviceError, LinkLost: as in :meth:`push`; what was active before stays active.
        """
        artifact = bundle.artifact(artifact_id)
        golden.host_outputs(bundle, artifact)
        runtime = self.runtime(artifact.runtime)
        setting = self._setting([artifact])
        linked = deploy.release_blobs(bundle, artifact)
        blobs = [*linked.values(), *deploy.runtime_blobs(runtime)]
        with self._locked("deploy", progress) as held:
            deploy.push(held, blobs, progress=progress or self._progress)
            deploy.place_runtime(held, runtime)
            release = deploy.make_release(held, bundle, linked)
            try:
                replayed = replay(held, bundle, artifact, threads, setting)
                problems = golden.broken_promises(replayed)
            except RunnerFailed as error:
                raise self._rolled_back(bundle, artifact, error.message) from error
            if problems:
                raise self._rolled_back(bundle, artifact, "; ".join(problems) + ".")
            return deploy.switch(held, bundle, release, artifact, threads, runtime.folder)[0]

    def rollback(self, model: str) -> Activation:
        """Activates what was active before; a second rollback flips back.

        Raises:
            DeviceError: there is nothing to return to, or that is damaged.
        """
        with self._locked("rollback", None) as held:
            return deploy.rollback(held, model)

    def status(self, verify: bool = False, *, model: str | None = None) -> DeviceStatus:
        """What is active. It needs no lock, and nobody has to wait for it.

        Args:
            verify: hash everything that the activations and their previous ones need, and, unless a
                model is named, everything else that is stored.
            model: only this model.
        """
        return read_status(self.channel, self.target.name, verify=verify, model=model)

    def gc(self) -> int:
        """Removes what no activation and no previous one needs; returns the bytes freed."""
        with self._locked("gc", None) as held:
            return held.call("gc", timeout_s=1800).number("removed_bytes")

    def _locked(self, what: str, progress: Progress | None) -> AbstractContextManager[Channel]:
        return self.channel.locked(
            what,
            progress=progress or self._progress,
            wait_s=self._option("lock_wait_s", LOCK_WAIT_S),
        )

    def _setting(self, artifacts: Sequence[Artifact]) -> Setting:
        profile = self.profile
        gate = {}
        if profile is not None and profile.max_temp_c > 0:
            gate = {"max_temp_c": profile.max_temp_c, "wait_s": profile.cool_down_s}
        usable: dict[str, runtimes.Runtime] = {}
        unusable: dict[str, EdgekitError] = {}
        for name in sorted({artifact.runtime for artifact in artifacts}):
            try:
                usable[name] = self.runtime(name)
            except (DeviceError, MissingExtra) as error:
                unusable[name] = error
        return Setting(
            runtimes=usable,
            unusable=unusable,
            gate=gate,
            timeout_s=self._option(
                "timeout_s", EMULATED_TIMEOUT_S if self._emulated else TIMEOUT_S
            ),
            wait_s=self._option("lock_wait_s", LOCK_WAIT_S),
        )

    def _option(self, name: str, default: float) -> float:
        text = self.target.options.get(name)
        try:
            return default if text is None else float(text)
        except ValueError:
            raise UsageError(f"{self.target.name}: {name} = {text!r} is not a number.") from None

    def _rolled_back(self, bundle: Bundle, artifact: Artifact, why: str) -> DeployRolledBack:
        model = bundle.manifest.model.name
        active = self.status(model=model).activations
        stays = f"{active[0].artifact_id} stays active." if active else "Nothing is active."
        return DeployRolledBack(
            f"{artifact.id} failed its health check on {self.target.name}: {why} {stays}",
            remedy="Look at this candidate's probe, and deploy another one.",
        )
