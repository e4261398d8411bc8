"""``edgekit select``."""

from __future__ import annotations

from typing import Annotated

import typer

from edgekit.cli.options import Config, MaxDrop, MaxRssMb, MaxSizeMb, Objective, Runs
from edgekit.cli.outcome import show_run
from edgekit.cli.output import Output
from edgekit.config import DeviceConfig
from edgekit.types import Budget


def select(
    out: Output,
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's folder or name, or latest.")
    ] = "latest",
    max_drop: MaxDrop = None,
    max_size_mb: MaxSizeMb = None,
    max_rss_mb: MaxRssMb = None,
    objective: Objective = None,
    runs: Runs = None,
    config: Config = None,
) -> int:
    """Choose again from recorded measurements, within another budget.

    What is not given stays as it was. The run's selection is replaced; devices are not touched.
    """
    from edgekit import results

    settings = DeviceConfig.from_args(
        config=config,
        max_drop=max_drop,
        max_size_mb=max_size_mb,
        max_rss_mb=max_rss_mb,
        objective=objective,
    )
    folder = results.find_run(runs if runs is not None else settings.runs, run)
    stored = results.load(folder).selection
    given = settings.budget
    before = given if stored is None else stored.budget
    budget = Budget(
        max_drop=before.max_drop if max_drop is None else given.max_drop,
        max_size_bytes=before.max_size_bytes if max_size_mb is None else given.max_size_bytes,
        max_rss_bytes=before.max_rss_bytes if max_rss_mb is None else given.max_rss_bytes,
    )
    keep = objective is None and stored is not None
    results.reselect(folder, budget, None if keep else settings.probe.objective)
    return show_run(out, results.load(folder))
