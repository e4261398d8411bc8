"""Figures of a file on the report set, against the float PyTorch model's outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.quality.cases import Case, Part
from benchmarks.quality.making import Made
from edgekit import quality
from edgekit.targets.measure import HostMeasurer
from edgekit.types import OutputQuality, TensorSpec

#: What stands for an error that is infinite or no number.
_WORST = 1e20


@dataclass(frozen=True)
class Truth:
    """A set and what the float model gives for it: ``inputs`` and ``outputs`` are (n, *shape)."""

    inputs: list[np.ndarray]
    labels: np.ndarray | None
    specs: tuple[TensorSpec, ...]
    outputs: list[np.ndarray]


@dataclass(frozen=True)
class Figures:
    """``outputs`` names parts where the case has parts; ``accuracy`` needs labels. ``noise`` is
    the squared error of each sample in the worst output, relative to that output's sum of squares
    over all samples: it adds up to the reciprocal of the SQNR."""

    outputs: tuple[OutputQuality, ...]
    agreement: float | None
    accuracy: float | None
    noise: tuple[float, ...]


def read_set(path: Path) -> tuple[list[np.ndarray], np.ndarray | None]:
    """The inputs of an .npz, (n, 1, ...) each, and its labels."""
    with np.load(path) as arrays:
        labels = arrays["labels"] if "labels" in arrays.files else None
        return [arrays[name][:, None] for name in arrays.files if name != "labels"], labels


def figures(case: Case, made: Made, truth: Truth, workdir: Path) -> Figures:
    """Run a file on the whole set.

    Raises:
        EdgekitError: it cannot be run, or its outputs are other ones.
    """
    assert made.path is not None
    given = HostMeasurer().outputs(
        made.path,
        made.runtime,
        fed(made.inputs, truth.inputs),
        made.outputs or truth.specs,
        workdir=workdir,
    )
    if made.outputs:
        given = [_dequantized(out, spec) for out, spec in zip(given, made.outputs, strict=True)]
    return compare(case, [spec.name for spec in truth.specs], truth, given)


def compare(case: Case, names: Sequence[str], truth: Truth, given: Sequence[np.ndarray]) -> Figures:
    """The figures of outputs, part by part where the case says so."""
    wanted, names, given = truth.outputs, list(names), list(given)
    if case.parts and wanted[0].shape[2] > 1:
        names = [part.name for part in case.parts]
        wanted, given = ([cut(stacks[0], p) for p in case.parts] for stacks in (wanted, given))
    accuracy = None
    if case.metric == "top1":
        accuracy = quality.float_metric("top1", given, truth.labels)
    outputs = quality.output_quality(names, wanted, given)
    worst = min(range(len(outputs)), key=lambda i: outputs[i].sqnr_db)
    return Figures(
        outputs=outputs,
        agreement=quality.agreement(case.metric, wanted[0], given[0]),
        accuracy=accuracy,
        noise=tuple(_noise(wanted[worst], given[worst])),
    )


def cut(stack: np.ndarray, part: Part) -> np.ndarray:
    """A part of an output of shape (n, 1, rows, ...)."""
    rows: np.ndarray = stack[:, :, part.start : part.stop]
    return rows


def _noise(wanted: np.ndarray, given: np.ndarray) -> Iterator[float]:
    """Of each sample; both (n, ...)."""
    signal = max(sum(float(np.sum(np.square(one, dtype=np.float64))) for one in wanted), 1e-30)
    for one, other in zip(wanted, given, strict=True):
        noise = float(np.sum(np.square(np.subtract(one, other, dtype=np.float64)))) / signal
        yield noise if noise < _WORST else _WORST


def fed(specs: Sequence[TensorSpec], stacks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Inputs as a file wants them: integers where its specs say so."""
    if not specs:
        return list(stacks)
    return [_quantized(stack, spec) for stack, spec in zip(stacks, specs, strict=True)]


def _quantized(stack: np.ndarray, spec: TensorSpec) -> np.ndarray:
    if spec.scale is None or spec.zero_point is None:
        return stack
    limits = np.iinfo(spec.dtype)
    integers = np.rint(stack / np.float32(spec.scale)) + spec.zero_point
    clipped: np.ndarray = np.clip(integers, limits.min, limits.max).astype(spec.dtype)
    return clipped


def _dequantized(stack: np.ndarray, spec: TensorSpec) -> np.ndarray:
    if spec.scale is None or spec.zero_point is None:
        return stack
    real: np.ndarray = (stack.astype(np.float32) - spec.zero_point) * np.float32(spec.scale)
    return real
