"""What every exporter is given and has to give, and how the engine asks for measurements.

An exporter is one file, ``to_<runtime>.py``, with a function ``export(request)``; it runs in a
process of its own, reads the prepared program and the ranges from files, and writes one artifact.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgekit import registry
from edgekit.errors import EdgekitError, ExportFailed, MissingExtra, WorkerCrashed
from edgekit.types import Recipe, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    import torch

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class ExportRequest:
    """One artifact to be made.

    ``program`` is the ``.pt2`` file to convert (for INT8: with corrected weights and biases), whose
    nodes ``recipe.float_nodes`` names; ``ranges`` the JSON file of activation ranges and
    ``calibration`` the folder of the calibration set (see :func:`edgekit.data.open_samples`), both
    for static recipes only; ``out`` the file to write.
    """

    runtime: str
    recipe: Recipe
    program: Path
    inputs: tuple[TensorSpec, ...]
    out: Path
    ranges: Path | None = None
    calibration: Path | None = None


class Exporter(Protocol):
    """Writes ``request.out``, with float32 inputs and outputs in the model's own shapes.

    Returns:
        The versions of the tools that made the file, by package name.

    Raises:
        ExportFailed: the conversion is not possible; says why and what to do.
    """

    def __call__(self, request: ExportRequest) -> Mapping[str, str]: ...


class Measurer(Protocol):
    """Runs artifacts for the engine, which knows nothing about devices."""

    def outputs(
        self,
        artifact: Path,
        runtime: str,
        inputs: Sequence[np.ndarray],
        output_specs: Sequence[TensorSpec],
        *,
        workdir: Path,
    ) -> list[np.ndarray]:
        """Outputs for stacked inputs, each (n, *input shape); one float32 array (n, *output shape)
        per output tensor."""
        ...


def export(request: ExportRequest) -> dict[str, str]:
    """Make one artifact with the exporter of its runtime; returns tool versions.

    Raises:
        MissingExtra: the runtime's packages are not installed.
        ExportFailed: the runtime has no such recipe, or the conversion failed or wrote nothing;
            what a converter raised is printed.
    """
    entry = registry.runtimes()[request.runtime]
    if request.recipe.name not in entry.recipes:
        raise ExportFailed(
            f"{entry.label} has no {request.recipe.name}.",
            remedy=f"Its recipes: {', '.join(entry.recipes)}.",
        )
    try:
        exporter: Exporter = registry.load_object(entry.exporter)
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or str(error), entry.extra) from error
    try:
        versions = exporter(request)
    except (EdgekitError, MemoryError):
        raise
    # Converters raise whatever they like.
    except Exception as error:
        traceback.print_exc()
        # It exports parts of the program by what is defined in here.
        from edgekit.quantize.locate import where

        cause = _root_cause(error).rstrip(".")
        raise WorkerCrashed(
            f"{entry.label} cannot convert the model: {cause}.{where(request, exporter, error)}",
            kind="exception",
            remedy=f"Write that part with other operators, or leave this runtime out with "
            f"--runtimes; `edgekit check` lists what each runtime takes. The log shows what "
            f"{entry.label}'s converter said.",
        ) from error
    if not request.out.is_file() or request.out.stat().st_size == 0:
        raise ExportFailed(f"The {entry.label} exporter wrote no file.")
    return dict(versions)


def _root_cause(error: BaseException) -> str:
    """Class and first line of the error that the others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *lines[:1]])[:500]


def example_inputs(specs: Sequence[TensorSpec]) -> tuple[torch.Tensor, ...]:
    """Zeros of the inputs' shapes and dtypes, for tools that trace a program."""
    import torch

    return tuple(torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for spec in specs)


def tool_versions(*packages: str) -> dict[str, str]:
    """Installed versions by distribution name."""
    from importlib.metadata import version

    return {package: version(package) for package in packages}
