"""``edgekit probe``."""

from __future__ import annotations

from typing import Annotated

import typer

from edgekit.cli import options as o
from edgekit.cli.outcome import show_deploy
from edgekit.cli.output import Output
from edgekit.config import DeviceConfig
from edgekit.resolve import resolve_one

Artifacts = Annotated[
    list[str] | None,
    typer.Option("--artifact", metavar="ID", help="Only this artifact; may be repeated."),
]

CountInstructions = Annotated[
    bool,
    typer.Option(
        "--count-instructions",
        help="On an emulated device: count the instructions of one inference, the same in every "
        "run, instead of measuring time. Records nothing.",
    ),
]


def probe(
    out: Output,
    bundle: o.BundleArgument = None,
    target: o.TargetOption = None,
    artifact: Artifacts = None,
    max_drop: o.MaxDrop = None,
    max_size_mb: o.MaxSizeMb = None,
    max_rss_mb: o.MaxRssMb = None,
    objective: o.Objective = None,
    threads: o.Threads = None,
    processes: o.Processes = None,
    budget_s: o.BudgetS = None,
    seed: o.Seed = None,
    count_instructions: CountInstructions = False,
    strict: o.Strict = False,
    config: o.Config = None,
) -> int:
    """Push a bundle to a device and measure it there, without activating anything."""
    settings = DeviceConfig.from_args(
        config=config,
        bundle=bundle,
        max_drop=max_drop,
        max_size_mb=max_size_mb,
        max_rss_mb=max_rss_mb,
        objective=objective,
        threads=o.counts(threads, "--threads"),
        processes=processes,
        budget_s=budget_s,
        seed=seed,
    )
    found = resolve_one(target, settings.targets)
    if count_instructions:
        from edgekit.cli.count import show_counts

        return show_counts(out, settings.bundle, found, artifact or (), strict=strict)
    from edgekit import pipeline
    from edgekit.bundle import Bundle

    with Bundle.open(settings.bundle) as opened:
        outcome = pipeline.probe(
            opened, found, settings, artifacts=artifact or (), progress=out.progress
        )
    return show_deploy(out, outcome, strict=strict)
