"""``edgekit run``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgekit import codec
from edgekit.cli import options as o
from edgekit.cli.outcome import (
    deploy_document,
    draw_deploy,
    quantize_document,
    selection_code,
    show_bundle,
    strict_code,
)
from edgekit.cli.output import Output
from edgekit.config import ProjectConfig
from edgekit.resolve import resolve_targets

if TYPE_CHECKING:
    from rich.console import Console

Fresh = Annotated[
    bool, typer.Option("--fresh", help="Measure again even where an earlier run answers.")
]


def run(
    out: Output,
    model: o.Model = None,
    target: o.TargetsOption = None,
    bundle: o.BundleOut = None,
    runtimes: o.Runtimes = None,
    recipes: o.Recipes = None,
    rungs: o.Rungs = None,
    replay: o.Replay = None,
    calib: o.Calib = None,
    eval: o.Eval = None,
    report: o.ReportSet = None,
    train: o.TrainSet = None,
    metric: o.MetricOption = None,
    max_drop: o.MaxDrop = None,
    max_size_mb: o.MaxSizeMb = None,
    max_rss_mb: o.MaxRssMb = None,
    objective: o.Objective = None,
    threads: o.Threads = None,
    processes: o.Processes = None,
    budget_s: o.BudgetS = None,
    seed: o.Seed = None,
    name: o.Name = None,
    weights: o.Weights = None,
    unsafe_weights: o.UnsafeWeights = None,
    input: o.Input = None,
    example: o.Example = None,
    preprocess: o.PreprocessOption = None,
    timeout_s: o.TimeoutS = None,
    memory_mb: o.MemoryMb = None,
    no_activate: o.NoActivate = False,
    fresh: Fresh = False,
    strict: o.Strict = False,
    config: o.Config = None,
) -> int:
    """Quantize and deploy in one go; what did not change is not done again.

    Without arguments everything comes from edgekit.toml.
    """
    project = ProjectConfig.from_args(
        config=config,
        model=model,
        bundle=bundle,
        runtimes=o.names(runtimes),
        recipes=o.names(recipes),
        rungs=o.names(rungs),
        replay=replay,
        calib=calib,
        eval=eval,
        report=report,
        train=train,
        metric=metric,
        max_drop=max_drop,
        max_size_mb=max_size_mb,
        max_rss_mb=max_rss_mb,
        objective=objective,
        threads=o.counts(threads, "--threads"),
        processes=processes,
        budget_s=budget_s,
        seed=seed,
        name=name,
        weights=weights,
        unsafe_weights=unsafe_weights,
        input=input,
        example=example,
        preprocess=preprocess,
        timeout_s=timeout_s,
        memory_mb=memory_mb,
    )
    targets = resolve_targets(target, project.targets)
    from edgekit import pipeline

    outcome = pipeline.run(
        project, targets, activate=not no_activate, fresh=fresh, progress=out.progress
    )
    failures = pipeline.all_failures(outcome)

    def show(console: Console) -> None:
        show_bundle(console, outcome.quantized)
        for one in outcome.deploys:
            draw_deploy(console, one)

    document = {
        "quantize": quantize_document(outcome.quantized),
        "deploys": [deploy_document(one) for one in outcome.deploys],
        "failures": codec.to_jsonable(failures),
    }
    out.result(document, show)
    codes = [selection_code(one.selection) for one in outcome.deploys]
    return max(codes, default=0) or strict_code(failures, strict)
