"""What was found about a case: one JSON line per case, appended, so that a cut run goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks.quality.cases import ROOT, Case
from edgekit import codec, stats
from edgekit.errors import BundleError
from edgekit.pipeline.workspace import environment
from edgekit.types import OutputQuality

Side = Literal["float", "ours", "stock_float", "stock", "olive"]


@dataclass(frozen=True)
class Entry:
    """One file that was compared, or why there is none (``failure``).

    ``outputs``, ``agreement`` and ``accuracy`` are on the report set, against the float PyTorch
    model. ``latency_ns`` holds the runs of each process, in the order of the rounds. ``note`` says
    what else a reader must know, such as that the file is over the budget.
    """

    side: Side
    runtime: str
    artifact: str
    size_bytes: int = 0
    int8_mac_share: float | None = None
    outputs: tuple[OutputQuality, ...] = ()
    agreement: float | None = None
    accuracy: float | None = None
    latency_ns: tuple[tuple[int, ...], ...] = ()
    note: str = ""
    failure: str = ""

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
    """A part of the output on one runtime: as part of the whole, and from a model of its own."""

    part: str
    runtime: str
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
    """A whole case. ``seconds`` are those of each phase; ``skipped`` says why nothing was done,
    ``failure`` why it did not end."""

    case: str
    key: str
    cpu: str = ""
    load: float = 0.0
    float_accuracy: float | None = None
    entries: tuple[Entry, ...] = ()
    choices: tuple[Choice, ...] = ()
    alone: tuple[Alone, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    skipped: str = ""
    failure: str = ""

    def entry(self, side: Side, runtime: str) -> Entry | None:
        """The file of one side and runtime, where it was made and could be run."""
        found = [e for e in self.entries if (e.side, e.runtime) == (side, runtime)]
        return next((entry for entry in found if not entry.failure), None)

    def fastest_float(self, runtime: str) -> Entry | None:
        """The faster of our float file and the vendor's: a slow one would flatter INT8."""
        both = (self.entry("float", runtime), self.entry("stock_float", runtime))
        timed = [entry for entry in both if entry is not None and entry.latency_ns]
        return min(timed, key=lambda entry: entry.median_ns, default=None)

    @property
    def runtimes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(entry.runtime for entry in self.entries))


def key_of(case: Case, *settings: object) -> str:
    """A hash over the case, edgekit, the benchmark's own code and the installed packages."""
    digest = hashlib.sha256(environment().encode())
    code = [case.file]
    for part in ("models", "quality", "vendors"):
        code += sorted((ROOT / "benchmarks" / part).glob("*.py"))
    for path in code:
        digest.update(path.read_bytes() if path.is_file() else b"")
    digest.update(repr((case, settings)).encode())
    return digest.hexdigest()[:20]


def append(path: Path, record: Record) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(codec.to_json(record) + "\n")


def read(path: Path) -> dict[str, Record]:
    """The records by key; a line that a cut run left half-written is passed over."""
    found = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = codec.from_json(Record, line, where=path.name)
            except BundleError:
                continue
            found[record.key] = record
    return found
