"""Jobs on a device: start or adopt one, follow it across lost connections, fetch what it left.

A job is a list of runner processes that the agent's worker runs one after the other. Its id is the
hash of its content, so asking for the same job again finds the one that is there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import DeviceError, LinkLost, RunnerFailed
from edgekit.targets.answer import Answer
from edgekit.targets.channel import Channel
from edgekit.types import Artifact

if TYPE_CHECKING:
    import numpy as np

FOLLOW_S = 60.0
LINK_RETRIES = 5
#: Beyond the time limits of its steps, a job that still says that it runs is not believed.
GRACE_S = 120.0
#: Between two calls, for a device that answers at once that it still measures.
PAUSE_S = 0.2


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
        DeviceError: it does not end within the time limits of its steps.
    """
    try:
        held.call("start", job=job, steps=list(steps), gate=dict(gate))
        follow(held, job, steps, gate, on_event)
    except LinkLost:
        raise
    except BaseException:
        with contextlib.suppress(DeviceError):  # the reason for stopping is what the caller needs
            held.call("cancel", job=job)
        raise


def follow(
    channel: Channel,
    job: str,
    steps: Sequence[Mapping[str, Any]],
    gate: Mapping[str, float],
    on_event: Callable[[dict[str, Any]], None],
) -> None:
    """Passes on the events of a job that was started, until it ends.

    Raises:
        LinkLost, DeviceError: as in :func:`run_job`.
    """
    limit_s = GRACE_S + sum(
        float(step["timeout_s"]) + float(gate.get("wait_s", 0.0)) for step in steps
    )
    deadline = time.monotonic() + limit_s
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
            answer = channel.call(
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
                    f"{error.message} The measurement goes on on {channel.name}.",
                    remedy="Run the same command again, or `edgekit probe --fetch`, to get what "
                    "was measured.",
                ) from error
            time.sleep(min(2.0**lost, 20.0) / 4)
            continue
        lost = 0
        if answer.get("state") != "running":
            return
        if time.monotonic() > deadline:
            raise DeviceError(
                f"{channel.name}: the measurement did not end within {limit_s:.0f} s, "
                "which all its steps together may take."
            )
        time.sleep(PAUSE_S)


@dataclass(frozen=True, slots=True)
class Job:
    """A job on a device.

    Attributes:
        id: what it is asked for by.
        state: ``running``, ``done`` or ``dead`` (it ended before its end).
        done: steps that have ended.
        steps: of all its steps.
        who: started it.
    """

    id: str
    state: str
    done: int
    steps: int
    who: str


def list_jobs(channel: Channel) -> list[Job]:
    """The jobs that run on a device, or whose results wait there."""
    answer = channel.call("jobs")
    found = [Answer(job, channel.name) for job in answer.items_of("jobs", dict)]
    return [
        Job(
            job.text("job"),
            job.text("state"),
            job.number("done"),
            job.number("steps"),
            "" if job.get("who") is None else job.text("who"),
        )
        for job in found
    ]


def fetch(
    held: Channel, job: str, index: int, artifact: Artifact, n: int
) -> list[np.ndarray[Any, Any]]:
    """The raw outputs of a step, each (n, *shape); what the device says decides no size."""
    import numpy as np

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
