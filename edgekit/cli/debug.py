"""``edgekit debug``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit import codec
from edgekit.cli import options as o
from edgekit.cli.output import Output
from edgekit.config import ProjectConfig
from edgekit.errors import ExportFailed

if TYPE_CHECKING:
    from rich.console import Console


def debug(
    out: Output,
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="BUNDLE|MODEL",
            help="A bundle of this project, or the model that it was made from; default: the "
            "bundle of edgekit.toml.",
        ),
    ] = None,
    runtimes: o.Runtimes = None,
    samples: Annotated[int, typer.Option(help="Golden samples of the bundle to run.", min=1)] = 8,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write the page with the plots.")
    ] = Path("debug.html"),
    recipes: o.Recipes = None,
    rungs: o.Rungs = None,
    calib: o.Calib = None,
    eval: o.Eval = None,
    report: o.ReportSet = None,
    train: o.TrainSet = None,
    replay: o.Replay = None,
    metric: o.MetricOption = None,
    max_drop: o.MaxDrop = None,
    name: o.Name = None,
    weights: o.Weights = None,
    unsafe_weights: o.UnsafeWeights = None,
    input: o.Input = None,
    example: o.Example = None,
    preprocess: o.PreprocessOption = None,
    config: o.Config = None,
) -> int:
    """Show which layers the error of INT8 comes from, and what cures it.

    For every INT8 artifact of the last bundle, each layer's tensor is compared with the float
    program's: in place (SQNR of everything up to there), and the layer's own part, simulated. The
    ten layers that add most are shown with advice; --json and the page have all of them.

    Run it after `edgekit quantize`, with the same options: it works on what that left behind.
    """
    bundle = Path(subject) if subject is not None and _is_bundle(Path(subject)) else None
    project = ProjectConfig.from_args(
        config=config,
        model=None if bundle is not None else subject,
        recipes=o.names(recipes),
        rungs=o.names(rungs),
        calib=calib,
        eval=eval,
        report=report,
        train=train,
        replay=replay,
        metric=metric,
        max_drop=max_drop,
        name=name,
        weights=weights,
        unsafe_weights=unsafe_weights,
        input=input,
        example=example,
        preprocess=preprocess,
    )
    from edgekit.pipeline.debugging import debug as run

    outcome = run(
        project,
        bundle=bundle,
        runtimes=o.names(runtimes),
        samples=samples,
        progress=out.progress,
    )
    from edgekit.report.debug_page import write_debug_page

    page = write_debug_page(outcome.model, outcome.artifacts, output).absolute()
    document = {
        "bundle": str(outcome.bundle),
        "model": outcome.model,
        "artifacts": codec.to_jsonable(outcome.artifacts),
        "failures": codec.to_jsonable(outcome.failures),
        "report": str(page),
        "seconds": outcome.seconds,
    }

    def show(console: Console) -> None:
        from edgekit.report.debug_terminal import errors_view

        console.print(errors_view(outcome.artifacts))
        for failure in outcome.failures:
            console.print(f"{failure.artifact}: {failure.message}", style="red", markup=False)
            if failure.remedy:
                console.print(f"  -> {failure.remedy}", markup=False)
        console.print(f"All layers: {page}", markup=False, soft_wrap=True)

    out.result(document, show)
    return 0 if outcome.artifacts else ExportFailed.exit_code


def _is_bundle(path: Path) -> bool:
    return path.suffix == ".tar" or (path / "manifest.json").is_file()
