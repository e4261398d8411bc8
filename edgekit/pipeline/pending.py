"""Measurements that were started on a device and whose results have not arrived yet.

Each is a file in the runs' folder, written before the device is asked to start and removed when its
results are here: a host that is killed in between can still fetch them later.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgekit import codec
from edgekit.errors import BundleError
from edgekit.files import write_atomic
from edgekit.types import ProbeRequest

FOLDER = ".pending"


@dataclass(frozen=True, slots=True)
class Pending:
    """What was asked of which device.

    Attributes:
        schema: 1.
        target: the target's name.
        bundle: the bundle's absolute path.
        digest: SHA-256 of its manifest.
        requests: what is measured, in order.
        seed: of the order of the processes.
        job: its id on the device.
        started_utc: when it was started.
    """

    schema: int
    target: str
    bundle: str
    digest: str
    requests: tuple[ProbeRequest, ...]
    seed: int
    job: str
    started_utc: str


def save(runs: Path, pending: Pending) -> None:
    """Notes a measurement that is about to start."""
    (runs / FOLDER).mkdir(parents=True, exist_ok=True)
    write_atomic(_place(runs, pending), codec.to_json(pending, indent=2) + "\n")


def drop(runs: Path, pending: Pending) -> None:
    """Forgets a measurement; that it is unknown is no error."""
    _place(runs, pending).unlink(missing_ok=True)


def find(runs: Path, target: str) -> list[Pending]:
    """The measurements that a target may still have results of, the newest first."""
    found = []
    for path in (runs / FOLDER).glob("*.json"):
        try:
            pending = codec.from_json(Pending, path.read_bytes(), where=str(path))
        except (BundleError, OSError):
            continue  # written by another version
        if pending.target == target:
            found.append(pending)
    return sorted(found, key=lambda pending: pending.started_utc, reverse=True)


def _place(runs: Path, pending: Pending) -> Path:
    name = re.sub(r"[^A-Za-z0-9._+-]", "_", f"{pending.target}-{pending.job}")
    return runs / FOLDER / f"{name.lstrip('.')}.json"
