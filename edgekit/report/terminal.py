"""Rich renderables for 100 columns. Cells are plain text: markup in them does not count."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from edgekit.report import view
from edgekit.results import RunRecord
from edgekit.runs import QueryResult
from edgekit.types import (
    Activation,
    CandidateFailure,
    Manifest,
    ProbeResult,
    Selection,
)
from edgekit.units import number

_COLUMNS = (
    "thr: threads; times in ms; 95 %: half the confidence interval of p50; load, first: median "
    "over processes; RSS: peak, MB; drop: from the device's own outputs."
)
_STYLES: dict[view.Status, tuple[str, str]] = {
    "chosen": ("▶", "bold green"),
    "tied": ("≈", "cyan"),
    "eligible": (" ", ""),
    "rejected": ("✗", "dim"),
}


# What a device or a log printed may hold escape sequences that would move the reader's cursor.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str, style: str = "") -> Text:
    """Text as it is, with control characters made visible as U+FFFD."""
    return Text(_CONTROL.sub("\ufffd", text), style=style)


def quantize_summary(
    manifest: Manifest, failures: Sequence[CandidateFailure] = ()
) -> RenderableType:
    """What a bundle holds: per artifact size, int8 share and the host's preview of accuracy."""
    table = plain_table(f"{manifest.model.name}: {len(manifest.artifacts)} artifacts")
    table.add_column("runtime", overflow="fold")
    table.add_column("recipe", overflow="fold")
    for column in ("MB", "of\nfloat", "int8\nMACs"):
        table.add_column(column, justify="right", overflow="fold")
    for evaluation in manifest.evals:
        agreement = "top-1" if evaluation.metric in ("top1", "agreement") else "agree"
        title = f"{view.evaluation_title(evaluation)}\nn={evaluation.n}\nSQNR dB"
        for column in (title, agreement, "drop"):
            table.add_column(column, justify="right", overflow="fold")
    for row in view.artifact_rows(manifest):
        scores = [cell for s in row.scores for cell in (s.sqnr, s.agreement, s.drop)]
        style = "" if row.ratio == view.NOTHING else "bold"
        cells = (row.runtime, row.recipe, row.size, row.ratio, row.int8_share, *scores)
        table.add_row(*(plain(cell) for cell in cells), style=style)
    made = {a.id for a in manifest.artifacts}
    for failure in failures:
        if failure.candidate not in made:
            recipe = failure.candidate.removeprefix(f"{manifest.model.name}-{failure.runtime}-")
            cells = (view.runtime_label(failure.runtime), recipe, "failed")
            table.add_row(*(plain(cell) for cell in cells), style="red")
    notes = [view.PREVIEW_NOTE, *_legacy_note([a.runtime for a in manifest.artifacts])]
    return Group(table, *_notes(notes), *_failures(failures))


def selection_table(
    selection: Selection, manifest: Manifest, probes: Sequence[ProbeResult]
) -> RenderableType:
    """Every candidate with its figures and its reason, the verdict above."""
    table = plain_table(_measured_on(probes))
    table.add_column("", width=1, overflow="fold")
    table.add_column("runtime", overflow="fold")
    table.add_column("kind", overflow="fold")
    for column in ("thr", "p50 ms", "95 %", "p90", "load", "first", "RSS", "drop"):
        table.add_column(column, justify="right", overflow="fold")
    table.add_column("why", overflow="fold")
    for row in view.candidate_rows(selection, manifest, probes):
        mark, style = _STYLES[row.status]
        timing = (row.threads, row.p50, row.spread, row.p90, row.load, row.first)
        cells = (mark, row.runtime, row.kind, *timing, row.rss, row.drop, row.reason)
        table.add_row(*(plain(cell) for cell in cells), style=style)
    legacy = _legacy_note([c.runtime for c in selection.candidates])
    return Group(*_verdict(selection, manifest), table, *_notes([_COLUMNS, *legacy]))


def _verdict(selection: Selection, manifest: Manifest) -> list[RenderableType]:
    style = "bold red" if selection.chosen is None else "bold green"
    return [
        plain(view.headline(selection, manifest), style=style),
        Padding(plain(selection.rule), (0, 0, 1, 0), expand=False),
    ]


def _measured_on(probes: Sequence[ProbeResult]) -> str:
    if not probes:
        return "nothing was probed"
    first = probes[0]
    word = "emulated" if first.facts_before.emulated else "measured"
    return f"{word} on {first.target}: {view.device_sentence(first.facts_before)}"


def failures_list(failures: Sequence[CandidateFailure]) -> RenderableType:
    """Each failure with its remedy and the last lines of its log."""
    return Group(*_failures(failures))


def _failures(failures: Sequence[CandidateFailure]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for failure in failures:
        parts.append(Text())
        name = plain(f"✗ {failure.candidate}", "bold red")
        parts.append(Text.assemble(name, plain(f"  {failure.stage}: {failure.message}")))
        for line in failure.log_tail:
            parts.append(Padding(plain(f"│ {line}", "dim"), (0, 0, 0, 2), expand=False))
        if failure.remedy:
            parts.append(Padding(plain(f"→ {failure.remedy}"), (0, 0, 0, 2), expand=False))
    return parts


def run_view(record: RunRecord) -> RenderableType:
    """A stored run: verdict, candidates, failures, and files that could not be read."""
    parts: list[RenderableType] = [Rule(plain(record.path.name), align="left", style="dim")]
    if record.selection is None:
        parts.append(Text("There is no selection yet: edgekit select makes one.", style="bold"))
    else:
        parts.append(selection_table(record.selection, record.manifest, record.probes))
    probe_failures = [p.error for p in record.probes if p.error is not None]
    known = {f.candidate for f in record.failures}
    parts += _failures([*record.failures, *(f for f in probe_failures if f.candidate not in known)])
    parts += _problems(record.problems)
    return Group(*parts)


def status_table(
    activations: Sequence[Activation], problems: Sequence[str] = (), *, target: str = ""
) -> RenderableType:
    """What is active on a device, per model."""
    if not activations:
        where = f" on {target}" if target else ""
        return Group(plain(f"Nothing is active{where}."), *_problems(problems))
    table = plain_table(f"active on {target}" if target else "active")
    for column in ("model", "artifact", "runtime"):
        table.add_column(column, overflow="fold")
    table.add_column("thr", justify="right", overflow="fold")
    for column in ("release", "previous", "since (UTC)"):
        table.add_column(column, overflow="fold")
    for a in activations:
        cells = (
            a.model,
            a.artifact_id.removeprefix(f"{a.model}-{a.runtime}-"),
            view.runtime_label(a.runtime),
            str(a.threads),
            a.release[:12],
            a.previous[:12] if a.previous else view.NOTHING,
            a.activated_utc.replace("T", " ")[:16],
        )
        table.add_row(*(plain(cell) for cell in cells))
    return Group(
        table, *_notes(_legacy_note([a.runtime for a in activations])), *_problems(problems)
    )


def runs_table(found: QueryResult) -> RenderableType:
    """The runs that :func:`edgekit.runs.query_runs` listed (called without SQL)."""
    if not found.rows:
        return Group(Text("There are no runs yet."), *_problems(found.problems))
    table = plain_table("runs, newest first")
    table.add_column("run", overflow="fold")
    table.add_column("chosen", overflow="fold")
    for column in ("thr", "p50 ms", "drop", "MB"):
        table.add_column(column, justify="right", overflow="fold")
    table.add_column("device", overflow="fold")
    for row in found.dicts():
        chosen = "nothing eligible" if row["rule"] else "not selected yet"
        if row["chosen"]:
            chosen = f"{view.runtime_label(row['runtime'])} {row['precision']}"
        device = f"{row['device'] or view.NOTHING}"
        cells = (
            str(row["run"]),
            chosen,
            _figure(row["threads"]),
            _figure(row["p50_ms"]),
            _figure(row["drop_value"]),
            _figure(row["peak_rss_mb"]),
            f"emulated {device}" if row["emulated"] else device,
        )
        table.add_row(*(plain(cell) for cell in cells))
    return Group(table, *_problems(found.problems))


def query_table(found: QueryResult) -> RenderableType:
    """Any query's answer."""
    table = plain_table(f"{len(found.rows)} row{'s' if len(found.rows) != 1 else ''}")
    numeric = [
        all(isinstance(row[i], (int, float, type(None))) for row in found.rows)
        for i in range(len(found.columns))
    ]
    for name, is_number in zip(found.columns, numeric, strict=True):
        table.add_column(plain(name), justify="right" if is_number else "left", overflow="fold")
    for values in found.rows:
        table.add_row(*(plain(_figure(value)) for value in values))
    return Group(table, *_problems(found.problems))


def _figure(value: object) -> str:
    if value is None:
        return view.NOTHING
    return number(value) if isinstance(value, float) else str(value)


def plain_table(title: str) -> Table:
    """A table in the style of all of edgekit's."""
    return Table(
        title=plain(title, "bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        header_style="dim",
    )


def _legacy_note(names: Sequence[str]) -> list[str]:
    return [view.LEGACY_NOTE] if view.has_legacy(names) else []


def _notes(notes: Sequence[str]) -> list[RenderableType]:
    return [Text(note, style="dim") for note in ["", *notes]] if notes else []


def _problems(problems: Sequence[str]) -> list[RenderableType]:
    return [plain(f"! {problem}", "yellow") for problem in problems]
