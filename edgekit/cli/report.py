"""``edgekit report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.options import Config, Runs
from edgekit.cli.output import Output
from edgekit.config import DeviceConfig

if TYPE_CHECKING:
    from rich.console import Console

    from edgekit.results import RunRecord


def report(
    out: Output,
    run: Annotated[
        str,
        typer.Argument(metavar="RUN|BUNDLE", help="A run's folder or name, latest, or a bundle."),
    ] = "latest",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to write it; default: report.html in the run."),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    runs: Runs = None,
    config: Config = None,
) -> None:
    """Write the HTML report of a run.

    One page that needs no network: accuracy against latency, the distributions, and the reasons.
    Of a bundle that was not measured yet, it shows what the host knows.
    """
    from edgekit.report.html import write_html

    record, default = _record(run, runs, config)
    path = write_html(record, output or default).absolute()
    if open_it:
        import webbrowser

        webbrowser.open(path.as_uri())

    def show(console: Console) -> None:
        console.print(f"Report: {path}", markup=False, soft_wrap=True)

    out.result({"report": str(path), "source": str(record.path)}, show)


def _record(name: str, runs: Path | None, config: Path | None) -> tuple[RunRecord, Path | None]:
    """What is reported on, and where the page goes by default (None: into the run)."""
    from edgekit import results
    from edgekit.bundle import Bundle

    path = Path(name)
    if path.suffix == ".tar" or (path / "recipe.json").is_file():
        with Bundle.open(path) as bundle:
            failures = bundle.recipe_log.failures
            record = results.RunRecord(path, bundle.manifest, (), failures, None)
        return record, Path("report.html")
    root = runs if runs is not None else DeviceConfig.from_args(config=config).runs
    return results.load(results.find_run(root, name)), None
