"""Where the error of an INT8 artifact comes from: its own tensors against the float program's.

How a runtime's intermediate tensors are had is one file per runtime, ``debug_<runtime>.py``, with a
function ``open_reader(request)``. The functions at the end run in processes of their own
(:mod:`edgekit.isolate`): foreign kernels and converters do the work.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import fx

from edgekit import codec, quality, registry
from edgekit.errors import EdgekitError, ExportFailed, MissingExtra
from edgekit.quantize import rewrites
from edgekit.quantize.base import ExportRequest, example_inputs
from edgekit.quantize.capture import Capture
from edgekit.quantize.engine import APART, PROGRAM, RANGES
from edgekit.quantize.layer_errors import InPlace, Measured
from edgekit.quantize.outliers import Apart, split
from edgekit.quantize.own_errors import channel_axis, decibels, own_errors
from edgekit.quantize.prepare import as_module, re_export
from edgekit.quantize.ranges import Range, load_ranges
from edgekit.quantize.simulate import rounded_nodes
from edgekit.types import RawTensor, Recipe, TensorSpec

Sample = tuple[np.ndarray, ...]

#: Outputs of a network that was built once more agree with those of the file at least so well.
_SAME_DB = 60.0


class Reader(Protocol):
    """Runs the INT8 network and hands out what it computes on the way.

    ``method`` says in a few words whose tensors these are; ``rebuilt`` that it is not the file
    itself that runs.
    """

    method: str
    rebuilt: bool

    def read(
        self, sample: Sample, floats: Mapping[str, np.ndarray]
    ) -> tuple[Mapping[str, np.ndarray], list[np.ndarray]]:
        """Run one sample.

        Args:
            sample: the model's inputs, with batch dimension.
            floats: what the float program gives at the wanted nodes, by name.

        Returns:
            real (dequantized) values by node name, in the shapes of the nodes, for those wanted
            nodes that the runtime has a tensor of; and the model's outputs in order.
        """
        ...


def open_reader(request: ExportRequest, wanted: Collection[str]) -> Reader:
    """The reader of the request's runtime.

    Args:
        request: what the artifact was made by; ``out`` is the artifact itself.
        wanted: names of the nodes whose values are of interest.

    Raises:
        ExportFailed: the runtime hides its tensors, or the network cannot be built again.
        MissingExtra: the runtime's packages are not installed.
    """
    entry = registry.runtimes()[request.runtime]
    if not entry.debugger:
        raise ExportFailed(
            f"{entry.label} gives no way to see the tensors inside a network.",
            remedy="Choose other runtimes with --runtimes.",
        )
    try:
        opener = registry.load_object(entry.debugger)
    except ModuleNotFoundError as error:
        raise MissingExtra(error.name or str(error), entry.extra) from error
    reader: Reader = opener(request, frozenset(wanted))
    return reader


def in_place(
    reference: fx.GraphModule,
    reader: Reader,
    samples: Sequence[Sample],
    wanted: Collection[str],
    expected: Sequence[Sequence[np.ndarray]] = (),
) -> InPlace:
    """SQNR of the artifact's tensors against the float program's, over all samples at once.

    Args:
        reference: the float program.
        reader: runs the INT8 network.
        samples: inputs.
        wanted: names of the nodes to compare.
        expected: per sample the outputs that the artifact gave under its runner; where a rebuilt
            network gives others, a note says so.
    """
    sums: dict[str, _Error] = {}
    outputs: list[_Error] = []
    against_file: list[_Error] = []
    capture = Capture(reference, wanted)
    for i, sample in enumerate(samples):
        tensors = [torch.from_numpy(np.array(array)) for array in sample]
        wanted_outputs = capture.run_sample(tensors)
        given, results = reader.read(sample, capture.values)
        for name, value in given.items():
            sums.setdefault(name, _Error()).add(capture.values[name], value)
        _add_all(outputs, wanted_outputs, results)
        if expected:
            _add_all(against_file, expected[i], results)
    notes = []
    agreement = min((error.sqnr_db for error in against_file), default=quality.SQNR_CAP_DB)
    if reader.rebuilt and agreement < _SAME_DB:
        notes.append(f"the outputs agree with those of the file to {agreement:.0f} dB only")
    missing = set(wanted) - set(sums)
    if missing:
        notes.append(f"{len(missing)} of {len(set(wanted))} tensors are not in the INT8 network")
    return InPlace(
        method=reader.method,
        measured={name: error.measured for name, error in sums.items()},
        output_sqnr_db=tuple(error.sqnr_db for error in outputs),
        notes=tuple(notes),
    )


class _Error:
    """Powers of signal and error over all samples."""

    def __init__(self) -> None:
        self._signal = self._noise = 0.0
        self._channels: np.ndarray | None = None
        self._per_channel = 0

    def add(self, wanted: np.ndarray, given: np.ndarray) -> None:
        reference = wanted.astype(np.float64)
        # Infinities are masks, which no integer can hold.
        finite = np.isfinite(reference)
        error = np.where(finite, given.astype(np.float64) - np.where(finite, reference, 0), 0)
        self._signal += float(np.square(reference[finite]).sum())
        self._noise += float(np.square(error).sum()) if np.isfinite(error).all() else np.inf
        axis = channel_axis(error.ndim)
        if axis is not None:
            others = tuple(i for i in range(error.ndim) if i != axis)
            sums = error.sum(others)
            self._channels = sums if self._channels is None else self._channels + sums
            self._per_channel += error.size // max(error.shape[axis], 1)

    @property
    def sqnr_db(self) -> float:
        return decibels(self._signal, self._noise)

    @property
    def measured(self) -> Measured:
        share = 0.0
        if self._channels is not None and 0 < self._noise < np.inf:
            constant = float(np.square(self._channels).sum()) / self._per_channel
            share = min(constant / self._noise, 1.0)
        return Measured(self.sqnr_db, share)


def _add_all(
    errors: list[_Error], wanted: Sequence[np.ndarray], given: Sequence[np.ndarray]
) -> None:
    if not errors:
        errors += [_Error() for _ in wanted]
    for error, a, b in zip(errors, wanted, given, strict=True):
        error.add(a, b.reshape(a.shape))


def own_worker(payload: dict[str, Any]) -> list[Any]:
    """:func:`edgekit.quantize.own_errors.own_errors` as JSON; see ``_Files`` for the payload."""
    files = _Files(payload)
    samples = [tuple(torch.from_numpy(array) for array in sample) for sample in files.samples]
    repaired = as_module(torch.export.load(files.repaired))
    found = own_errors(files.reference, repaired, files.ranges, files.recipe, samples)
    return [codec.to_jsonable(node) for node in found]


def in_place_worker(payload: dict[str, Any]) -> Any:
    """:func:`in_place` of one artifact as JSON; see ``_Files`` for the payload."""
    files = _Files(payload)
    wanted = frozenset(rounded_nodes(files.reference))
    request = ExportRequest(
        runtime=payload["runtime"],
        recipe=files.recipe,
        program=files.repaired,
        inputs=files.inputs,
        out=Path(payload["artifact"]),
        ranges=files.ranges_file,
    )
    try:
        reader = open_reader(request, wanted)
    except (EdgekitError, MemoryError):
        raise
    # Converters raise whatever they like.
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ExportFailed(
            f"The network of {payload['id']} cannot be opened for debugging: {reason}."
        ) from error
    expected = files.stacks("expected")
    return codec.to_jsonable(in_place(files.reference, reader, files.samples, wanted, expected))


class _Files:
    """The payload of a worker, opened.

    ``program`` is the prepared ``.pt2`` file; ``repaired`` the folder of the repair step, empty
    where there is none; ``work`` a folder of the worker's own; ``recipe`` a Recipe and ``inputs``
    TensorSpecs. ``folder`` with the
    RawTensors ``golden`` (inputs) and ``expected`` (outputs, may be empty) holds the samples, of
    which ``samples`` lists the indices.
    """

    def __init__(self, payload: dict[str, Any]) -> None:
        self._payload = payload
        self.recipe = codec.from_json(Recipe, payload["recipe"], where="recipe")
        self.inputs = codec.from_json(tuple[TensorSpec, ...], payload["inputs"], where="inputs")
        self.repaired = Path(payload["program"])
        program = torch.export.load(self.repaired)
        if self.recipe.rewrites:
            # The program that was calibrated, made once more.
            gm = as_module(program)
            rewrites.apply(gm, self.recipe.rewrites)
            program = re_export(gm, example_inputs(self.inputs))
            self.repaired = Path(payload["work"]) / PROGRAM
            torch.export.save(program, self.repaired)
        if payload["repaired"] and (Path(payload["repaired"]) / APART).is_file():
            path = Path(payload["repaired"]) / APART
            apart = codec.from_json(Apart, path.read_bytes(), where=str(path))
            program = split(program, apart, example_inputs(self.inputs)).exported
        self.reference = as_module(program)
        self.ranges_file: Path | None = None
        self.ranges: Mapping[str, Range] = {}
        if payload["repaired"]:
            folder = Path(payload["repaired"])
            self.repaired, self.ranges_file = folder / PROGRAM, folder / RANGES
            self.ranges = load_ranges(self.ranges_file)
        self.samples = self.stacks("golden")

    def stacks(self, key: str) -> list[Sample]:
        """One tuple of arrays per sample."""
        tensors = codec.from_json(tuple[RawTensor, ...], self._payload[key], where=key)
        folder = Path(self._payload["folder"])
        arrays = [np.memmap(folder / t.path, t.dtype, mode="r", shape=t.shape) for t in tensors]
        if not arrays:
            return []
        return [tuple(np.array(array[i]) for array in arrays) for i in self._payload["samples"]]
