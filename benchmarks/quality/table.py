"""The records as the table and the notes that are printed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from benchmarks.common import Bar, Report
from benchmarks.quality.cases import Case
from benchmarks.quality.records import Entry, Record
from benchmarks.quality.verdicts import bars, ratio

COLUMNS = (
    "model, runtime, file",
    "SQNR dB",
    "top-1",
    "int8 MACs",
    "MB",
    "of float",
    "p50 ms",
    "of float's p50",
)
_SIDES = {
    "float": "fp32",
    "ours": "edgekit",
    "stock_float": "stock fp32",
    "stock": "stock",
    "olive": "Olive",
}
_STRETCH_DB, _STRETCH_AGREEMENT = 25.0, 0.97


def report(
    cases: Sequence[Case],
    records: Mapping[str, Record],
    conditions: Mapping[str, str],
    seed: int,
) -> Report:
    """All cases that were asked for, in their order."""
    rows: list[Sequence[str]] = []
    held: list[Bar] = []
    notes: list[str] = []
    for case in cases:
        record = records[case.name]
        rows += _rows(case, record)
        held += bars(case, record, seed)
        notes += _notes(case, record)
    return Report(
        name="quality",
        columns=COLUMNS,
        rows=rows,
        bars=held,
        notes=notes,
        conditions=conditions,
        samples={
            f"{record.case}, {entry.runtime}, {_SIDES[entry.side]}, latency_ns": [
                float(ns) for run in entry.latency_ns for ns in run
            ]
            for record in records.values()
            for entry in record.entries
            if entry.latency_ns
        },
    )


def _rows(case: Case, record: Record) -> Iterator[Sequence[str]]:
    empty = [""] * (len(COLUMNS) - 1)
    title = case.name
    if record.float_accuracy is not None:
        title += f" (float {record.float_accuracy:.4f})"
    yield [title, *empty]
    if record.skipped or record.failure:
        yield [f"  {record.skipped or 'failed'}", *empty]
        return
    for runtime in record.runtimes:
        for entry in record.entries:
            if entry.runtime == runtime:
                yield _row(record, entry)


def _name(record: Record, entry: Entry) -> str:
    """Runtime and side; of our INT8 variants, those that do not stand for their runtime by id."""
    if entry.side == "ours" and entry.artifact not in record.compared:
        _, _, recipe = entry.artifact.partition(f"-{entry.runtime}-")
        return f"{entry.runtime} {_SIDES['ours']}, also {recipe}"
    return f"{entry.runtime} {_SIDES[entry.side]}"


def _row(record: Record, entry: Entry) -> Sequence[str]:
    name = f"  {_name(record, entry)}"
    if entry.failure:
        return [name, "failed", *[""] * (len(COLUMNS) - 2)]
    twin = fastest = None
    if entry.side not in ("float", "stock_float"):
        twin, fastest = record.entry("float", entry.runtime), record.fastest_float(entry.runtime)
    top1 = entry.agreement if entry.accuracy is None else entry.accuracy
    timed = bool(entry.latency_ns)
    return [
        name,
        "" if entry.sqnr_db is None else f"{entry.sqnr_db:.1f}",
        "" if top1 is None else f"{top1:.3f}",
        "" if entry.int8_mac_share is None else f"{entry.int8_mac_share:.0%}",
        f"{entry.size_bytes / 1e6:.2f}",
        "" if twin is None else f"{entry.size_bytes / twin.size_bytes:.3f}",
        f"{entry.median_ns / 1e6:.2f}" if timed else "",
        f"{ratio(entry, fastest):.2f}" if timed and fastest is not None else "",
    ]


def _notes(case: Case, record: Record) -> Iterator[str]:
    if record.failure:
        yield f"{case.name}: {record.failure}"
    for entry in record.entries:
        what = f"{case.name}, {_name(record, entry)}"
        if entry.failure or entry.untimed:
            yield f"{what}: {entry.failure or entry.untimed}"
        if entry.note:
            yield f"{what}: {entry.note} ({entry.artifact})"
        if len(entry.outputs) > 1 and entry.side not in ("float", "stock_float"):
            each = ", ".join(f"{one.output} {one.sqnr_db:.1f} dB" for one in entry.outputs)
            yield f"{what}: {each}"
    for choice in record.choices:
        if choice.precision == "fp32":
            yield f"{case.name}, {choice.runtime}: the selector takes float: {choice.rule}"
    if case.bars.agreement is not None and not record.failure:
        ours = [e for e in record.entries if e.artifact in record.compared and not e.failure]
        reached = [
            entry.runtime
            for entry in ours
            if (entry.sqnr_db or 0) >= _STRETCH_DB and (entry.agreement or 0) >= _STRETCH_AGREEMENT
        ]
        yield (
            f"{case.name}: stretch ({_STRETCH_DB:g} dB and {_STRETCH_AGREEMENT:g}) reached by "
            f"{', '.join(reached) or 'none'}"
        )
    if record.seconds:
        spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in record.seconds.items())
        yield f"{case.name}: {spent}"
    for done, when in (("made", record.made), ("timed", record.timed)):
        if when is not None:
            load = f"load {when.load_before:.2f} before, {when.load_after:.2f} after"
            yield f"{case.name}: {done} {when.utc} on {when.cpu}; {load}"
    if record.timed is None:
        yield f"{case.name}: not timed; of our variants within the budget the least accurate stand"
