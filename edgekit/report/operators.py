"""The terminal view of ``edgekit check``, for 100 columns: operators in groups, problems first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from edgekit.quantize.check import FATES, Fate, Operator, Row, RuntimeCheck, Verdict, rows
from edgekit.report import view
from edgekit.report.terminal import plain

_STYLES: Mapping[Fate, str] = {
    "fails": "bold red",
    "outside": "yellow",
    "float": "",
    "converts": "dim",
    "int8": "green",
}
_LEGEND = (
    "int8: computed in int8 by a static INT8 artifact; float: stays float there; converts: takes "
    "its input's type; outside: outside the delegate, in float; *: after automatic decomposition."
)
#: How many modules of a group are named.
_MODULES = 2


def operators_view(
    model: str, operators: Sequence[Operator], checks: Sequence[RuntimeCheck]
) -> RenderableType:
    """A headline per runtime, the table, and a cause for each operator that does not convert."""
    grouped = rows(operators, checks)
    asked = [check for check in checks if not check.error]
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", show_edge=False)
    table.add_column("operator", overflow="fold")
    table.add_column("n", justify="right")
    table.add_column("where", overflow="fold", ratio=1)
    for check in asked:
        table.add_column(check.runtime, no_wrap=True)
    for row in grouped:
        cells = [_cell(row.verdicts[check.runtime]) for check in asked]
        table.add_row(plain(_short(row.op)), str(len(row.operators)), _where(row), *cells)
    parts: list[RenderableType] = [plain(f"{model}: {len(operators)} operators", "bold")]
    parts += [_headline(check) for check in checks]
    parts += [Text(""), table]
    parts += _causes(grouped)
    parts += [Text(""), Text(_LEGEND, style="dim")]
    return Group(*parts)


def _headline(check: RuntimeCheck) -> RenderableType:
    label = view.runtime_label(check.runtime)
    if check.error:
        lines: list[RenderableType] = [plain(f"  ✗ {label}: {check.error}", "bold red")]
        lines += [plain(f"    -> {check.remedy}")] if check.remedy else []
        return Group(*lines)
    counts = {fate: sum(v.fate == fate for v in check.verdicts.values()) for fate in FATES}
    words = ", ".join(f"{count} {fate}" for fate, count in counts.items() if count)
    mark, style = ("✓", "green") if check.converts else ("✗", "bold red")
    return plain(f"  {mark} {label}: {words} ({check.seconds:.1f} s)", style)


def _cell(verdict: Verdict) -> Text:
    mark = "*" if verdict.rewritten else ""
    return Text(f"{verdict.fate}{mark}", style=_STYLES[verdict.fate])


def _where(row: Row) -> Text:
    modules = list(dict.fromkeys(o.module or "(model)" for o in row.operators))
    sources = list(dict.fromkeys(_short_source(o.source) for o in row.operators if o.source))
    text = ", ".join(modules[:_MODULES])
    if len(modules) > _MODULES:
        text += f" +{len(modules) - _MODULES}"
    if sources:
        text += f" ({sources[0]}{f' +{len(sources) - 1}' if len(sources) > 1 else ''})"
    return plain(text)


def _causes(grouped: Sequence[Row]) -> list[RenderableType]:
    """Why operators fail or run outside the delegate, each cause once."""
    parts: list[RenderableType] = []
    for row in grouped:
        for runtime, verdict in row.verdicts.items():
            if verdict.fate not in ("fails", "outside") or not verdict.reason:
                continue
            mark = "✗" if verdict.fate == "fails" else "!"
            text = f"{mark} {view.runtime_label(runtime)}, {_short(row.op)}: {verdict.reason}"
            parts.append(plain(text, _STYLES[verdict.fate]))
            if verdict.remedy:
                parts.append(Padding(plain(f"-> {verdict.remedy}"), (0, 0, 0, 2)))
    return [Text(""), *parts] if parts else []


def _short(op: str) -> str:
    return op.removeprefix("aten.")


def _short_source(source: str) -> str:
    return PurePath(source).name
