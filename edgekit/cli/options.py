"""The options that several commands share, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgekit.errors import UsageError

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="file.py:factory, package.module:factory, torchvision:NAME, timm:NAME or x.pt2; "
        "default: the [model] of edgekit.toml.",
    ),
]
BundleArgument = Annotated[
    Path | None,
    typer.Argument(metavar="BUNDLE", help="A bundle's folder or .tar; default: edgekit.toml's."),
]
Config = Annotated[
    Path | None,
    typer.Option(help="The file to read instead of the edgekit.toml found here or above."),
]
BundleOut = Annotated[
    Path | None, typer.Option("--bundle", "-o", help="Where the bundle goes. Default: bundle.")
]
Name = Annotated[str | None, typer.Option(help="The model's name in file names and results.")]
Weights = Annotated[Path | None, typer.Option(help="A state dict to load into the model.")]
UnsafeWeights = Annotated[
    bool | None,
    typer.Option(
        "--unsafe-weights", help="Allow a weights file that can run code. Only if you trust it."
    ),
]
Input = Annotated[
    list[str] | None,
    typer.Option(metavar="SHAPE", help="An input's shape, such as 1x3x224x224; once per input."),
]
Example = Annotated[
    str | None,
    typer.Option(metavar="FILE:NAME", help="A function that returns the example inputs."),
]
PreprocessOption = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        metavar="PRESET|KEYS",
        help="From image to input: imagenet, inception or unit, or keys of the [preprocess] "
        'table such as "resize=256, crop=[224, 224]".',
    ),
]
Calib = Annotated[
    str | None,
    typer.Option(
        metavar="PATH", help="Calibration samples: a folder of images, an .npz or file.py:function."
    ),
]
Eval = Annotated[
    str | None, typer.Option("--eval", metavar="PATH", help="Samples that decide on accuracy.")
]
ReportSet = Annotated[
    str | None,
    typer.Option(
        "--report", metavar="PATH", help="Samples for the reported accuracy, never used to decide."
    ),
]
TrainSet = Annotated[
    str | None,
    typer.Option(
        "--train",
        metavar="PATH",
        help="Samples for a short quantization-aware training, where nothing else keeps the "
        "budget. Needs no labels.",
    ),
]
MetricOption = Annotated[
    str | None,
    typer.Option("--metric", help="auto (default), top1, agreement, cosine or relative_error."),
]
Runtimes = Annotated[
    list[str] | None,
    typer.Option(metavar="NAMES", help="Runtimes, separated by commas. Default: all."),
]
Recipes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAMES",
        help="Recipes, separated by commas. Default: fp32, and dynamic INT8 for transformers, "
        "static INT8 for other models.",
    ),
]
Rungs = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAMES",
        help="Rungs of the repair ladder that may be climbed, in this order, separated by commas; "
        '"" for none. Default: all.',
    ),
]
Replay = Annotated[
    Path | None,
    typer.Option(metavar="BUNDLE", help="Apply the recipes saved in this bundle, without search."),
]
TimeoutS = Annotated[
    float | None,
    typer.Option("--timeout-s", help="Seconds that one export may take. Default: 900."),
]
MemoryMb = Annotated[
    float | None,
    typer.Option("--memory-mb", help="Memory that one export may use, in MB. Default: 8192."),
]
MaxDrop = Annotated[
    float | None,
    typer.Option("--max-drop", help="Accuracy that may be lost; 0.01 is one point. Default: 0.01."),
]
MaxSizeMb = Annotated[
    float | None, typer.Option("--max-size-mb", help="Size that a file may have, in MB.")
]
MaxRssMb = Annotated[
    float | None, typer.Option("--max-rss-mb", help="Memory that a run may take, in MB.")
]
Threads = Annotated[
    list[str] | None,
    typer.Option(
        metavar="N,N",
        help="Thread counts to measure, separated by commas. Default: those of the device's "
        "profile, as far as it has CPUs; 1,2 without one.",
    ),
]
Processes = Annotated[
    int | None, typer.Option(help="Fresh processes per artifact and thread count. Default: 5.")
]
BudgetS = Annotated[
    float | None, typer.Option("--budget-s", help="Seconds of timed runs per process. Default: 1.")
]
Objective = Annotated[str | None, typer.Option(help="What decides: p50 (default) or p90.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the order of measurements. Default: 0.")]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        "-t",
        metavar="TARGET",
        help="A name in edgekit.toml, a built-in profile, ssh://user@host:port, adb:SERIAL or "
        "local; default: the only target in edgekit.toml.",
    ),
]
TargetsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        "-t",
        metavar="TARGET",
        help="Where to deploy, as in `edgekit deploy`; may be repeated. Default: all targets in "
        "edgekit.toml.",
    ),
]
Runs = Annotated[Path | None, typer.Option(help="The folder of the runs; default: the project's.")]
NoActivate = Annotated[
    bool, typer.Option("--no-activate", help="Measure and choose, but leave the device as it is.")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Exit with 8 when any candidate has failed.")
]


def names(values: list[str] | None) -> list[str] | None:
    """``["a,b", "c"]`` -> ``["a", "b", "c"]``; None where the option was not given."""
    if not values:
        return None
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def counts(values: list[str] | None, option: str) -> list[int] | None:
    """As :func:`names`, for whole numbers.

    Raises:
        UsageError: one of them is not a number.
    """
    found = names(values)
    try:
        return None if found is None else [int(value) for value in found]
    except ValueError:
        raise UsageError(
            f"{option}: must be whole numbers separated by commas, not {','.join(found or [])!r}."
        ) from None
