"""What every exporter is given and has to give, and how the engine asks for measurements.

An exporter is one file, ``to_<runtime>.py``, with a function ``export(request)``; it runs in a
process of its own (:func:`export_worker`), reads the prepared program and the ranges from files, and
writes one artifact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgekit import codec, registry
from edgekit.errors import ExportFailed, MissingExtra
from edgekit.types import Recipe, TensorSpec

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ExportRequest:
    """One artifact to be made.

    ``program`` is the ``.pt2`` file to convert (for INT8: with corrected weights and biases);
    ``ranges`` the JSON file of activation ranges (INT8 only); ``calibration`` one ``.npy`` file per
    model input, shape (n, *input shape); ``out`` the file to write.
    """

    runtime: str
    recipe: Recipe
    program: Path
    ranges: Path | None
    calibration: tuple[Path, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    out: Path


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


def export_worker(payload: dict[str, Any]) -> dict[str, str]:
    """Entry point of an exporter's process."""
    request = codec.from_json(ExportRequest, payload, where="export request")
    entry = registry.runtimes()[request.runtime]
    try:
        exporter: Exporter = registry.load_object(entry.exporter)
        versions = exporter(request)
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or str(error), entry.extra) from error
    if not request.out.is_file() or request.out.stat().st_size == 0:
        raise ExportFailed(f"The {entry.label} exporter wrote no file.")
    return dict(versions)


def tool_versions(*packages: str) -> dict[str, str]:
    """Installed versions by distribution name."""
    from importlib.metadata import version

    return {package: version(package) for package in packages}
