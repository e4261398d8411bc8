"""``edgekit results``."""

from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli.options import Config, Runs
from edgekit.cli.output import Output
from edgekit.config import DeviceConfig

if TYPE_CHECKING:
    from rich.console import Console


def results(
    out: Output,
    model: Annotated[str | None, typer.Option(help="Only runs of this model.")] = None,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="Only runs on this target.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the newest N runs. Default: all.")
    ] = None,
    sql: Annotated[
        str | None,
        typer.Option(help="A query over the tables runs, candidates, probes and failures instead."),
    ] = None,
    runs: Runs = None,
    config: Config = None,
) -> None:
    """List the recorded measurements.

    Newest first, one line per run; `--sql` asks anything else of them, with DuckDB.
    """
    from edgekit.results import query_runs

    folder = runs if runs is not None else DeviceConfig.from_args(config=config).runs
    found = query_runs(folder, sql, model=model, target=target, limit=limit)
    document = {
        "runs": str(folder),
        "rows": [{key: _plain(value) for key, value in row.items()} for row in found.dicts()],
        "problems": list(found.problems),
    }

    def show(console: Console) -> None:
        from edgekit.report import terminal

        draw = terminal.runs_table if sql is None else terminal.query_table
        console.print(draw(found))

    out.result(document, show)


def _plain(value: Any) -> Any:
    """What DuckDB gives, as JSON types."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None  # NaN compares False too
    return value if isinstance(value, (str, int, type(None))) else str(value)
