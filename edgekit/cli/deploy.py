"""``edgekit deploy``."""

from __future__ import annotations

from edgekit.cli import options as o
from edgekit.cli.outcome import show_deploy
from edgekit.cli.output import Output
from edgekit.config import DeviceConfig
from edgekit.resolve import resolve_one


def deploy(
    out: Output,
    bundle: o.BundleArgument = None,
    target: o.TargetOption = None,
    max_drop: o.MaxDrop = None,
    max_size_mb: o.MaxSizeMb = None,
    max_rss_mb: o.MaxRssMb = None,
    objective: o.Objective = None,
    threads: o.Threads = None,
    processes: o.Processes = None,
    budget_s: o.BudgetS = None,
    seed: o.Seed = None,
    no_activate: o.NoActivate = False,
    strict: o.Strict = False,
    config: o.Config = None,
) -> int:
    """Push a bundle to a device, measure it there, choose and activate the best.

    The switch is atomic and follows a health check on the device; `edgekit rollback` undoes it.
    What an option does not say comes from edgekit.toml.
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
    from edgekit import pipeline
    from edgekit.bundle import Bundle

    with Bundle.open(settings.bundle) as opened:
        outcome = pipeline.deploy(
            opened, found, settings, activate=not no_activate, progress=out.progress
        )
    return show_deploy(out, outcome, strict=strict)
