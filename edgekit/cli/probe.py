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
Fetch = Annotated[
    bool,
    typer.Option("--fetch", help="Only fetch what an earlier call started and could not wait for."),
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
    fetch: Fetch = False,
    strict: o.Strict = False,
    config: o.Config = None,
) -> int:
    """Push a bundle to a device and measure it there, without activating anything.

    A measurement goes on on the device when the link or this machine is lost. The same command
    joins it; with --fetch, only what it found is fetched and nothing is started.
    """
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
    if fetch:
        from edgekit.pipeline.fetching import fetch as fetch_results

        fetched = fetch_results(found, settings, bundle=bundle, progress=out.progress)
        return show_deploy(out, fetched, strict=strict)
    from edgekit import pipeline
    from edgekit.bundle import Bundle

    with Bundle.open(settings.bundle) as opened:
        outcome = pipeline.probe(
            opened, found, settings, artifacts=artifact or (), progress=out.progress
        )
    return show_deploy(out, outcome, strict=strict)
