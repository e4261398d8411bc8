"""Results of a measurement that an earlier call started and was cut off from."""

from __future__ import annotations

import time
from pathlib import Path

from edgekit.bundle import Bundle
from edgekit.config import DeviceConfig
from edgekit.errors import UsageError
from edgekit.pipeline import pending
from edgekit.pipeline.deploying import DeployOutcome, Recording
from edgekit.progress import Progress, Quiet
from edgekit.targets.device import Device, connect
from edgekit.types import Target


def fetch(
    target: Target,
    config: DeviceConfig,
    *,
    bundle: Path | None = None,
    progress: Progress | None = None,
) -> DeployOutcome:
    """Fetch what a device measured for an earlier call; start and push nothing.

    Args:
        bundle: only measurements of the bundle in this place.

    Raises:
        UsageError: there is nothing to fetch, or the bundle is another one by now.
        DeviceError: the device cannot be reached, or measures still.
    """
    started = time.monotonic()
    wanted = None if bundle is None else str(bundle.absolute())
    notes = [p for p in pending.find(config.runs, target.name) if wanted in (None, p.bundle)]
    with connect(target, progress=progress or Quiet()) as device:
        waiting = {job.id: job for job in device.jobs()}
        for note in notes:
            if note.job not in waiting:
                pending.drop(config.runs, note)  # fetched by somebody else, or cleaned up
                continue
            with Bundle.open(Path(note.bundle)) as opened:
                if opened.digest != note.digest:
                    raise UsageError(
                        f"The bundle in {note.bundle} is not the one that was measured.",
                        remedy="Measure again: `edgekit probe`.",
                    )
                recording = Recording(opened, target, config, progress or Quiet())
                device.fetch(
                    opened, note.requests, note.job, seed=note.seed, on_result=recording.keep
                )
                record = recording.finish()
            pending.drop(config.runs, note)
            return DeployOutcome(record, None, None, False, time.monotonic() - started)
        raise _nothing(device, target)


def _nothing(device: Device, target: Target) -> UsageError:
    others = [job for job in device.jobs() if job.state != "absent"]
    if not others:
        return UsageError(
            f"There is nothing to fetch from {target.name}.",
            remedy="`edgekit probe` starts a measurement.",
        )
    told = "; ".join(f"{job.done} of {job.steps} done, {job.who or 'unknown'}" for job in others)
    return UsageError(
        f"There is nothing to fetch from {target.name} for this project. What is there was started "
        f"elsewhere: {told}.",
        remedy="Fetch it in the project that it was started in.",
    )
