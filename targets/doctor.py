"""Which runtimes really work on a device: each one is executed there, in a process of its own.

Importing is not enough: a wheel built for newer CPUs imports and then dies with SIGILL.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgekit import registry
from edgekit.errors import EdgekitError, LinkLost, RunnerFailed
from edgekit.progress import Progress, Quiet
from edgekit.targets import deploy
from edgekit.targets.device import LOCK_WAIT_S, Device
from edgekit.targets.results import runner_exit
from edgekit.targets.runner import parse_document, raise_failure

TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class RuntimeCheck:
    """What one runtime did.

    Attributes:
        runtime: its name in the registry.
        ok: whether it ran its own small test.
        version: what it calls itself; empty where it did not get so far.
        message: what happened, in one sentence.
        remedy: what to do; empty where nothing is wrong or nothing can be advised.
        signal: e.g. ``"SIGILL"``; empty where no signal was involved.
    """

    runtime: str
    ok: bool
    version: str
    message: str
    remedy: str = ""
    signal: str = ""


def check_runtimes(device: Device, *, progress: Progress | None = None) -> list[RuntimeCheck]:
    """Tries every registered runtime; one that fails does not keep the others from being tried."""
    progress = progress or Quiet()
    checks = []
    with progress.stage("runtimes", len(registry.runtimes())) as stage:
        for name, entry in registry.runtimes().items():
            checks.append(check_runtime(device, name, progress=progress))
            stage.advance(1, entry.label)
    return checks


def check_runtime(device: Device, name: str, *, progress: Progress) -> RuntimeCheck:
    """Brings one runtime to the device and runs its self-test there."""
    version = ""
    try:
        runtime = device.runtime(name)
        version = runtime.version
        blobs = deploy.runtime_blobs(runtime)
        with device.channel.locked("doctor", progress=progress, wait_s=LOCK_WAIT_S) as held:
            deploy.push(held, blobs, progress=progress)
            deploy.place_runtime(held, runtime)
            ended = runner_exit(
                held.call(
                    "selftest",
                    runtime=runtime.folder,
                    limit_s=TIMEOUT_S,
                    timeout_s=TIMEOUT_S + 60,
                )
            )
        if ended.timed_out or ended.returncode != 0:
            raise_failure(ended, what=name)
        document = parse_document(ended.stdout)
        if document.get("selftest") != "ok":
            raise ValueError("it reports no self-test")
    except RunnerFailed as error:
        return RuntimeCheck(name, False, version, error.message, error.remedy, error.signal_name)
    except LinkLost as error:
        remedy = error.remedy or "Run doctor again: what was sent stays on the device."
        return RuntimeCheck(name, False, version, error.message, remedy)
    except EdgekitError as error:
        return RuntimeCheck(name, False, version, error.message, error.remedy)
    except ValueError as error:
        return RuntimeCheck(name, False, version, f"{name}: the self-test failed: {error}.")
    reported = str(document.get("runtime_version", version))[:100]
    return RuntimeCheck(name, True, reported, f"{name} {reported} runs.")
