"""ONNX Runtime: ``.onnx`` files, INT8 in QDQ form by onnxruntime's own quantizer.

The exporter names values after the nodes of the prepared program, so that they take the ranges of
edgekit's calibration. For values that the converter invented, onnxruntime finds the extremes over
the whole calibration set.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import fx

from edgekit.data import open_samples
from edgekit.quantize.base import ExportRequest, tool_versions
from edgekit.quantize.calibrate import Range, load_ranges
from edgekit.quantize.prepare import as_module

_MOVES = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity")


def export(request: ExportRequest) -> Mapping[str, str]:
    """See :class:`edgekit.quantize.base.Exporter`."""
    program = torch.export.load(request.program)
    float_file = request.out.with_suffix(".float.onnx")
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(program, (), float_file, dynamo=True, external_data=False, verbose=False)
    if request.recipe.precision == "fp32":
        float_file.replace(request.out)
    else:
        _quantize(float_file, program, request)
        float_file.unlink()
    return tool_versions("onnx", "onnxruntime", "onnxscript", "torch")


def _quantize(
    float_file: Path, program: torch.export.ExportedProgram, request: ExportRequest
) -> None:
    assert request.ranges is not None and request.calibration is not None
    prepared = float_file.with_suffix(".pre.onnx")
    quant_pre_process(str(float_file), str(prepared))
    graph = onnx.load(str(prepared)).graph
    known = _ranges_by_value(graph, program, load_ranges(request.ranges))
    floats = {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    } - {tensor.name for tensor in graph.initializer}
    quantize_static(
        str(prepared),
        str(request.out),
        # quantize_static insists on at least one sample; a known range overrides what it finds.
        _Samples(
            [value.name for value in graph.input],
            open_samples(request.calibration).inputs,
            None if floats - known.keys() else 1,
        ),
        quant_format=QuantFormat.QDQ,
        per_channel=request.recipe.per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        extra_options={
            "TensorQuantOverrides": {
                name: [{"rmin": np.float32(low), "rmax": np.float32(high)}]
                for name, value in known.items()
                for low, high in [value.of(request.recipe.ranges)]
            }
        },
    )
    prepared.unlink()


def _ranges_by_value(
    graph: onnx.GraphProto, program: torch.export.ExportedProgram, ranges: Mapping[str, Range]
) -> dict[str, Range]:
    """The calibrated range of each ONNX value that is the value of a node.

    ONNX values are called as the program's nodes are. Calibration ran the program as a module,
    where a name that Python or a parameter already has is given a number; the order is the same.
    Inputs and outputs go by position, whatever they are called.
    """
    nodes = _computed(as_module(program).graph)
    inputs = set(program.graph_signature.user_inputs)
    nodes_of_program = [
        node for node in _computed(program.graph) if node.op != "placeholder" or node.name in inputs
    ]
    named = {
        value.name: ranges[node.name]
        for value, node in zip(nodes_of_program, nodes, strict=True)
        if node.name in ranges
    }
    values = {name for node in graph.node for name in node.output}
    found = {name: range_ for name, range_ in named.items() if name in values}
    for edges, names in (
        (graph.input, program.graph_signature.user_inputs),
        (graph.output, program.graph_signature.user_outputs),
    ):
        for edge, name in zip(edges, names, strict=True):
            if name in named:
                found[edge.name] = named[str(name)]
    _share(graph, found)
    return found


def _share(graph: onnx.GraphProto, found: dict[str, Range]) -> None:
    """Give the range of a value to those that the converter made of it by moving it."""
    moves = [node for node in graph.node if node.op_type in _MOVES]
    for node in reversed(moves):
        if node.output[0] in found:
            found.setdefault(node.input[0], found[node.output[0]])
    for node in moves:
        if node.input[0] in found:
            found.setdefault(node.output[0], found[node.input[0]])


def _computed(graph: fx.Graph) -> list[fx.Node]:
    """Inputs and what is computed and used; a program's file also lists unused results."""
    return [
        node
        for node in graph.nodes
        if node.op == "placeholder" or (node.op == "call_function" and node.users)
    ]


class _Samples(CalibrationDataReader):  # type: ignore[misc]
    """The calibration samples one by one, all or the first ``limit`` of them."""

    def __init__(
        self, names: Sequence[str], stacks: Sequence[np.ndarray], limit: int | None
    ) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = (
            {name: np.array(stack[i]) for name, stack in zip(names, stacks, strict=True)}
            for i in range(len(stacks[0]))[:limit]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)
