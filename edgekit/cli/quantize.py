"""``edgekit quantize``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.cli import options as o
from edgekit.cli.outcome import quantize_code, quantize_document, show_bundle
from edgekit.cli.output import Output
from edgekit.config import ProjectConfig

if TYPE_CHECKING:
    from rich.console import Console


def quantize(
    out: Output,
    model: o.Model = None,
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
    name: o.Name = None,
    weights: o.Weights = None,
    unsafe_weights: o.UnsafeWeights = None,
    input: o.Input = None,
    example: o.Example = None,
    preprocess: o.PreprocessOption = None,
    timeout_s: o.TimeoutS = None,
    memory_mb: o.MemoryMb = None,
    strict: o.Strict = False,
    config: o.Config = None,
) -> int:
    """Make float and INT8 artifacts of a model for several runtimes, in one bundle.

    Every export runs in a process of its own; one that fails is listed and the others go on. What
    an option does not say comes from edgekit.toml.
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
        name=name,
        weights=weights,
        unsafe_weights=unsafe_weights,
        input=input,
        example=example,
        preprocess=preprocess,
        timeout_s=timeout_s,
        memory_mb=memory_mb,
    )
    from edgekit import pipeline

    outcome = pipeline.quantize(project, progress=out.progress)

    def show(console: Console) -> None:
        show_bundle(console, outcome)

    out.result(quantize_document(outcome), show)
    return quantize_code(project, outcome, strict)
