"""What all benchmarks share: options, the conditions of a run, bars, and how a report is shown."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Bar:
    """A promise and how it turned out: kept where ``value <= limit``, or ``>=`` with ``least``.

    ``timing`` marks the ones that depend on the machine's load; ``--quick`` does not hold those.
    """

    what: str
    value: float
    limit: float
    unit: str = ""
    timing: bool = True
    least: bool = False

    @property
    def kept(self) -> bool:
        return self.value >= self.limit if self.least else self.value <= self.limit

    def __str__(self) -> str:
        # An exact limit such as 0.125 must not be shown rounded.
        wanted, other = (">=", "<") if self.least else ("<=", ">")
        relation = wanted if self.kept else other
        unit = f" {self.unit}" if self.unit else ""
        verdict = "kept" if self.kept else "MISSED"
        return f"{verdict}: {self.what}: {self.value:.3g}{unit} {relation} {self.limit:g}{unit}"


@dataclass(frozen=True)
class Report:
    """What a benchmark found. ``samples`` are the raw measurements, with the unit in each key."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    bars: Sequence[Bar]
    notes: Sequence[str] = ()
    conditions: Mapping[str, str] = field(default_factory=dict)
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)


def run_to_end(
    command: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None
) -> None:
    """Run a command whose time is taken, without input; what it prints to stdout is dropped.

    subprocess's own time limit is no good for that: with one it looks only every 50 ms whether a
    process has ended.

    Raises:
        subprocess.CalledProcessError: it failed, or took longer and was killed.
    """
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    timer = threading.Timer(timeout_s, process.kill)
    timer.start()
    try:
        code = process.wait()
    finally:
        timer.cancel()
        process.kill()
    if code:
        raise subprocess.CalledProcessError(code, list(command))


def argument_parser(name: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--seed", type=int, default=0, help="seed of the order (default 0)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only see that it works: few repetitions, no bar on time is held",
    )
    return parser


def conditions(*packages: str) -> dict[str, str]:
    """The machine and the versions under which a benchmark ran."""
    found = {
        "cpu": cpu_model(),
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "load": f"{os.getloadavg()[0]:.2f} (1 min, before)",
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
    }
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name; its architecture where the kernel does not tell one."""
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    # x86 says "model name", boards with a device tree say "Model" at the end.
    for key in ("model name", "Model"):
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == key and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def finish(report: Report, *, as_json: bool, quick: bool) -> int:
    """Print the report and return the exit code: 1 where a bar was missed that counts."""
    print(to_json(report, quick=quick) if as_json else to_text(report, quick=quick))
    return int(any(not bar.kept and not (quick and bar.timing) for bar in report.bars))


def to_json(report: Report, *, quick: bool) -> str:
    document: dict[str, Any] = {
        "benchmark": report.name,
        "quick": quick,
        "conditions": dict(report.conditions),
        "rows": [dict(zip(report.columns, row, strict=True)) for row in report.rows],
        "bars": [{**vars(bar), "kept": bar.kept} for bar in report.bars],
        "notes": list(report.notes),
        "samples": {key: list(values) for key, values in report.samples.items()},
    }
    return json.dumps(document, indent=2, allow_nan=False)


def to_text(report: Report, *, quick: bool) -> str:
    table = [list(report.columns), *map(list, report.rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [f"benchmark {report.name}" + (" (quick: times mean nothing)" if quick else ""), ""]
    for row in table:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    lines += ["", *map(str, report.bars), *report.notes, ""]
    lines += [f"{key}: {value}" for key, value in report.conditions.items()]
    return "\n".join(lines)
