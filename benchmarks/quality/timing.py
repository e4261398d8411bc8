"""Latency of many files in interleaved rounds, one pinned thread, with the runners of devices.

A round runs every file once, in a process of its own. Rounds start at another file each time and
go back and forth, so that neither a drift of the machine nor the neighbour before favours one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.errors import EdgekitError, LinkLost
from edgekit.targets.local import LocalTransport
from edgekit.targets.measure import HostMeasurer
from edgekit.targets.runner import RunnerArguments, RunnerExit, RunnerReport, judge, spec

TIMEOUT_S = 300.0
#: Bounds what is kept of very fast models, and the time of very slow ones.
MIN_RUNS, MAX_RUNS = 5, 1000


@dataclass(frozen=True)
class Timed:
    """A file to be timed on one sample: arrays with the batch dimension 1, in order."""

    key: str
    runtime: str
    path: Path
    sample: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Effort:
    """How long to look: ``rounds`` processes per file, each with so many timed seconds."""

    rounds: int
    budget_s: float = 0.3
    warmup_s: float = 0.3


def measure(
    files: Sequence[Timed], effort: Effort
) -> tuple[dict[str, list[RunnerReport]], dict[str, str]]:
    """Reports by key, one per round, and the reasons of the files that could not be run."""
    reports: dict[str, list[RunnerReport]] = {file.key: [] for file in files}
    failed: dict[str, str] = {}
    measurer = HostMeasurer()
    with tempfile.TemporaryDirectory(prefix="edgekit-quality-") as name, pinned():
        inputs = {file.key: _write(Path(name), i, file.sample) for i, file in enumerate(files)}
        for number in range(effort.rounds):
            for file in rotated(files, number, effort.rounds):
                if file.key in failed:
                    continue
                try:
                    command = measurer.command(file.runtime)
                    report = _run(command, file, inputs[file.key], effort)
                except EdgekitError as error:
                    failed[file.key] = error.message
                else:
                    reports[file.key].append(report)
    return {key: found for key, found in reports.items() if key not in failed}, failed


def rotated(files: Sequence[Timed], number: int, rounds: int) -> Sequence[Timed]:
    """The order of one round."""
    start = number * len(files) // rounds
    order = [*files[start:], *files[:start]]
    return order if number % 2 == 0 else order[::-1]


@contextmanager
def pinned() -> Iterator[int]:
    """This process, and so what it starts, on one core: the last that it may use."""
    allowed = os.sched_getaffinity(0)
    core = max(allowed)
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, allowed)


def _run(
    command: Sequence[str], file: Timed, inputs: Mapping[str, tuple[str, ...]], effort: Effort
) -> RunnerReport:
    arguments = RunnerArguments(
        model=str(file.path),
        threads=1,
        samples=1,
        inputs=inputs["paths"],
        specs=inputs["specs"],
        warmup_s=effort.warmup_s,
        budget_s=effort.budget_s,
        min_runs=MIN_RUNS,
        max_runs=MAX_RUNS,
    )
    try:
        done = LocalTransport().run([*command, *arguments.argv()], timeout_s=TIMEOUT_S)
    except LinkLost:
        ended = RunnerExit(-9, "", "", timed_out=True)
    else:
        out, errors = (part.decode("utf-8", "replace") for part in (done.stdout, done.stderr))
        ended = RunnerExit(done.returncode, out, errors)
    return judge(ended, what=file.key)


def _write(folder: Path, index: int, sample: Sequence[np.ndarray]) -> dict[str, tuple[str, ...]]:
    paths = []
    for i, array in enumerate(sample):
        paths.append(folder / f"{index}-{i}.raw")
        paths[-1].write_bytes(np.ascontiguousarray(array).tobytes())
    return {
        "paths": tuple(map(str, paths)),
        "specs": tuple(spec(array.dtype.name, array.shape) for array in sample),
    }
