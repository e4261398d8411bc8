"""The engine: from a loaded model to the programs that exporters convert.

Two steps, each leaving a folder: :func:`prepare_model` the cleaned-up float program, and
:func:`repair_program` the ranges and a program whose weights and biases are mended for INT8. Both
are the same for every runtime, so that artifacts can be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edgekit.data import SampleSet
from edgekit.errors import SourceError
from edgekit.quantize import graph
from edgekit.quantize.bias_correction import correct_biases
from edgekit.quantize.calibrate import calibrate, save_ranges
from edgekit.quantize.hessian_rounding import round_weights
from edgekit.quantize.prepare import as_float32, as_module, export_program, prepare, re_export
from edgekit.quantize.simulate import activation_grids
from edgekit.types import Recipe, TensorSpec

PROGRAM = "program.pt2"
RANGES = "ranges.json"

#: Calibration samples that repair works on; ranges use all of them.
HESSIAN_SAMPLES = 16
BIAS_SAMPLES = 64

_DTYPES = {
    torch.float32: "float32",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.bool: "bool",
}


@dataclass(frozen=True)
class Prepared:
    """What :func:`prepare_model` made. ``digest`` stands for program and weights.

    ``notes`` are for the user.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    passes: tuple[str, ...]
    digest: str
    notes: tuple[str, ...] = ()


def prepare_model(
    module: torch.nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    input_names: Sequence[str],
    folder: Path,
) -> Prepared:
    """Export and clean up a model; writes ``program.pt2`` into ``folder``.

    A model in another float width is cast to float32, in place.

    Raises:
        SourceError: the model cannot be exported, or has inputs or outputs of an unknown dtype.
    """
    example_inputs, notes = as_float32(module, example_inputs)
    program, passes = prepare(export_program(module, example_inputs), example_inputs)
    torch.export.save(program, folder / PROGRAM)
    gm = as_module(program)
    with torch.inference_mode():
        results = gm(*example_inputs)
    leaves = [v for v in torch.utils._pytree.tree_leaves(results) if isinstance(v, torch.Tensor)]
    names = ["output"] if len(leaves) == 1 else [f"output_{i}" for i in range(len(leaves))]
    return Prepared(
        inputs=tuple(_spec(n, v) for n, v in zip(input_names, example_inputs, strict=True)),
        outputs=tuple(_spec(n, v) for n, v in zip(names, leaves, strict=True)),
        passes=passes,
        digest=_digest(program),
        notes=notes,
    )


def repair_program(
    program: Path,
    calibration: SampleSet,
    recipe: Recipe,
    folder: Path,
    *,
    on_step: Callable[[str], None] = lambda name: None,
) -> None:
    """Calibrate, round and correct; writes ``program.pt2`` and ``ranges.json`` into ``folder``.

    Raises:
        DataError: the calibration set cannot be used.
    """
    exported = torch.export.load(program)
    reference = as_module(exported)
    on_step("calibrate")
    ranges = calibrate(reference, lambda: samples(calibration))
    save_ranges(folder / RANGES, ranges)
    mended = as_module(torch.export.load(program))
    if recipe.scheme == "static":
        on_step("hessian_rounding")
        round_weights(mended, list(samples(calibration, HESSIAN_SAMPLES)))
        on_step("bias_correction")
        grids = activation_grids(reference, ranges, recipe.ranges)
        correct_biases(mended, reference, list(samples(calibration, BIAS_SAMPLES)), grids)
    example = next(samples(calibration, 1))
    torch.export.save(re_export(mended, example), folder / PROGRAM)


def samples(source: SampleSet, limit: int | None = None) -> Iterator[tuple[torch.Tensor, ...]]:
    """Input tuples with batch dimension; with a limit, so many spread evenly over the set."""
    count = source.n if limit is None else min(limit, source.n)
    for i in (index * source.n // count for index in range(count)):
        yield tuple(torch.from_numpy(np.array(array[i])) for array in source.inputs)


def _spec(name: str, tensor: torch.Tensor) -> TensorSpec:
    if tensor.dtype not in _DTYPES:
        known = ", ".join(sorted(_DTYPES.values()))
        raise SourceError(
            f"The model's {name!r} is of dtype {str(tensor.dtype).removeprefix('torch.')}.",
            remedy=f"Cast it in forward() to one of: {known}.",
        )
    return TensorSpec(
        name=name,
        shape=tuple(tensor.shape),
        dtype=_DTYPES[tensor.dtype],
        layout="NCHW" if tensor.dim() == 4 else "",
    )


def _digest(program: torch.export.ExportedProgram) -> str:
    """SHA-256 over the graph and all constants; the ``.pt2`` file itself carries time stamps."""
    gm = as_module(program)
    digest = hashlib.sha256()
    for node in gm.graph.nodes:
        call = [node.op, node.name, str(node.target), str(node.args), str(node.kwargs)]
        digest.update(json.dumps(call).encode())
        if node.op == "placeholder":
            value = node.meta["val"]
            digest.update(str((value.dtype, tuple(value.shape))).encode())
        if node.op == "get_attr":
            value = graph.attribute(gm, str(node.target)).contiguous()
            digest.update(str((value.dtype, tuple(value.shape))).encode())
            digest.update(value.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
