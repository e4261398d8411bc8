"""The timing of a case that was made: all its files in interleaved rounds, and what is chosen."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.quality import choosing, judging, making
from benchmarks.quality.cases import Case
from benchmarks.quality.records import Choice, Conditions, Entry, Record
from benchmarks.quality.running import folder_of
from benchmarks.quality.timing import Effort, Timed, measure
from edgekit.bundle import Bundle
from edgekit.errors import EdgekitError
from edgekit.files import sha256_file
from edgekit.targets.runner import RunnerReport


def is_there(record: Record, work: Path) -> bool:
    """Whether the files are those that were judged; they may have been removed or made again."""
    return all(
        (work / entry.path).is_file() and sha256_file(work / entry.path) == entry.sha256
        for entry in record.entries
        if entry.path
    )


def time_case(case: Case, record: Record, key: str, work: Path, effort: Effort) -> Record:
    """The record with the latency of every file, and with what the selector takes by it."""
    folder = folder_of(case, work)
    started, before = Conditions.now(), time.monotonic()
    reports, unable = _measure(case, record, folder, work, effort)
    timed = Conditions.since(*started)
    try:
        bundle = Bundle.open(folder / "ours" / "bundle", verify=False)
        facts = choosing.this_machine(folder / "device")
    except EdgekitError as error:
        return replace(record, failure=error.message)
    probes = choosing.probe_results(bundle, reports, facts)
    notes: dict[str, str] = {}
    choices: list[Choice] = []
    for runtime in making.VENDORS:
        best = choosing.best_int8(bundle, probes, runtime, case.max_drop)
        if best is not None:
            notes[best[0]] = best[1]
        choice = choosing.choice(bundle, probes, runtime, case.max_drop)
        choices += [choice] if choice is not None else []
    entries = [_with_times(entry, reports, unable, notes) for entry in record.entries]
    return replace(
        record,
        timed_key=key,
        timed=timed,
        entries=tuple(entries),
        compared=tuple(notes),
        choices=tuple(choices),
        seconds={**record.seconds, "timing": round(time.monotonic() - before, 1)},
    )


def _measure(
    case: Case, record: Record, folder: Path, work: Path, effort: Effort
) -> tuple[dict[str, list[RunnerReport]], dict[str, str]]:
    stacks, _ = judging.read_set(folder / "choose.npz")
    first = [stack[:1] for stack in stacks]
    files = [
        Timed(
            entry.artifact,
            entry.runtime,
            work / entry.path,
            tuple(stack[0] for stack in judging.fed(entry.inputs, first)),
        )
        for entry in record.entries
        if entry.path and not entry.failure
    ]
    return measure(files, effort)


def _with_times(
    entry: Entry,
    reports: Mapping[str, Sequence[RunnerReport]],
    unable: Mapping[str, str],
    notes: Mapping[str, str],
) -> Entry:
    return replace(
        entry,
        latency_ns=tuple(report.latency_ns for report in reports.get(entry.artifact, ())),
        untimed=unable.get(entry.artifact, ""),
        note=notes.get(entry.artifact, ""),
    )
