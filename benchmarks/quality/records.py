"""What was found about a case: one JSON line per case and phase.

Lines are appended, so that a cut run goes on where it was. The last line of a key counts: that of
the timing repeats what making and judging found.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from benchmarks.common import cpu_model
from edgekit import codec, stats
from edgekit.errors import BundleError
from edgekit.types import OutputQuality, TensorSpec

Side = Literal["float", "ours", "stock_float", "stock", "olive"]


@dataclass(frozen=True)
class Conditions:
    """When a phase ran and on what: UTC, processor, load of one minute before and after it."""

    utc: str
    cpu: str
    load_before: float
    load_after: float

    @classmethod
    def since(cls, utc: str, load_before: float) -> Conditions:
        """Those of a phase that ends now."""
        return cls(utc, cpu_model(), round(load_before, 2), round(os.getloadavg()[0], 2))

    @staticmethod
    def now() -> tuple[str, float]:
        """What :meth:`since` wants to know of the start."""
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), os.getloadavg()[0]


@dataclass(frozen=True)
class Entry:
    """One file, or why there is none (``failure``).

    ``path`` is relative to the work folder; ``inputs`` are given where the file is fed other types
    than the model. ``drop`` is ours on the set for decisions. ``outputs``, ``agreement``,
    ``accuracy`` and ``noise`` (:class:`.judging.Figures`) are on the report set, against the float
    PyTorch model. ``latency_ns`` holds the
    runs of each process, in the order of the rounds; ``untimed`` says why there are none. ``note``
    says what else a reader must know, such as that the file is over the budget.
    """

    side: Side
    runtime: str
    artifact: str
    path: str = ""
    sha256: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    drop: float | None = None
    size_bytes: int = 0
    int8_mac_share: float | None = None
    outputs: tuple[OutputQuality, ...] = ()
    agreement: float | None = None
    accuracy: float | None = None
    noise: tuple[float, ...] = ()
    latency_ns: tuple[tuple[int, ...], ...] = ()
    note: str = ""
    failure: str = ""
    untimed: str = ""

    @property
    def median_ns(self) -> float:
        """Of all runs, each process weighing the same."""
        return stats.quantile(self.latency_ns, 0.5)

    @property
    def sqnr_db(self) -> float | None:
        """That of the worst output."""
        return min((one.sqnr_db for one in self.outputs), default=None)


@dataclass(frozen=True)
class Alone:
    """A part of an artifact's output: as part of the whole, and from a model of its own."""

    part: str
    artifact: str
    whole_db: float
    alone_db: float


@dataclass(frozen=True)
class Choice:
    """What the selector would run on this machine with one runtime, and why."""

    runtime: str
    artifact: str
    precision: str
    rule: str


@dataclass(frozen=True)
class Record:
    """A whole case. ``key`` and ``timed_key`` are those of :mod:`.keys`; ``compared`` are the ids
    of our INT8 artifacts that stand for their runtimes. ``seconds`` are those of each phase;
    ``skipped`` says why nothing was done, ``failure`` why it did not end."""

    case: str
    key: str
    made: Conditions | None = None
    timed_key: str = ""
    timed: Conditions | None = None
    float_accuracy: float | None = None
    entries: tuple[Entry, ...] = ()
    compared: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()
    alone: tuple[Alone, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    skipped: str = ""
    failure: str = ""

    def entry(self, side: Side, runtime: str) -> Entry | None:
        """The file that stands for one side and runtime, where it was made and could be run."""
        found = [e for e in self.entries if (e.side, e.runtime) == (side, runtime)]
        if side == "ours":
            found = [entry for entry in found if entry.artifact in self.compared]
        return next((entry for entry in found if not entry.failure), None)

    def untimed(self) -> Record:
        """The record without a timing that no longer holds for it."""
        entries = tuple(
            replace(entry, latency_ns=(), note="", untimed="") for entry in self.entries
        )
        return replace(self, timed_key="", timed=None, entries=entries, choices=())

    def fastest_float(self, runtime: str) -> Entry | None:
        """The faster of our float file and the vendor's: a slow one would flatter INT8."""
        both = (self.entry("float", runtime), self.entry("stock_float", runtime))
        timed = [entry for entry in both if entry is not None and entry.latency_ns]
        return min(timed, key=lambda entry: entry.median_ns, default=None)

    @property
    def runtimes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(entry.runtime for entry in self.entries))


def append(path: Path, record: Record) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(codec.to_json(record) + "\n")


def read(path: Path) -> dict[str, Record]:
    """The last record of each key; lines that a cut run left half-written, or that another version
    wrote, are passed over."""
    found = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = codec.from_json(Record, line, where=path.name)
            except BundleError:
                continue
            found[record.key] = record
    return found
