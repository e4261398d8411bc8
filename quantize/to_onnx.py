"""ONNX Runtime: ``.onnx`` files, INT8 by onnxruntime's own quantizers.

Static INT8 is in QDQ form: the exporter names values after the nodes of the prepared program, so
that they take the ranges of edgekit's calibration. For values that the converter invented,
onnxruntime finds the extremes over the whole calibration set.
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
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import fx

from edgekit.data import open_samples
from edgekit.quantize.base import ExportRequest, tool_versions
from edgekit.quantize.decompositions import load_program
from edgekit.quantize.float_nodes import dynamic_layers, float_closure
from edgekit.quantize.graph import ATEN
from edgekit.quantize.onnx_values import (
    computing,
    leave_float,
    name_after_nodes,
    name_nodes,
    ranges_by_value,
    values_by_node,
)
from edgekit.quantize.onnx_weights import quantize_weights
from edgekit.quantize.origins import mark
from edgekit.quantize.prepare import as_module
from edgekit.quantize.ranges import load_ranges
from edgekit.quantize.taken_apart import taken_apart


def export(request: ExportRequest) -> Mapping[str, str]:
    """See :class:`edgekit.quantize.base.Exporter`."""
    program = load_program(request)
    float_file = request.out.with_suffix(".float.onnx")
    mark(program)
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
    prepared = float_file.with_suffix(".pre.onnx")
    gm = as_module(program)
    float_nodes = set(request.recipe.float_nodes)
    if request.recipe.scheme == "static":
        float_nodes |= taken_apart(gm, "onnx") | _grouped_transposed(gm)
    left = float_closure(gm, float_nodes)
    exported = onnx.load(str(float_file))
    name_after_nodes(exported.graph, program)
    name_nodes(exported.graph)
    # Where onnxruntime moves a transpose, the values beside it have other names afterwards, and
    # what computes them has not.
    floats = computing(exported.graph, values_by_node(exported.graph, program), left)
    onnx.save(exported, str(float_file))
    # Shapes are numbers here; working them out as symbols fails where a scalar is expanded.
    quant_pre_process(str(float_file), str(prepared), skip_symbolic_shape=True)
    model = onnx.load(str(prepared))
    values = values_by_node(model.graph, program)
    name_nodes(model.graph)
    floats |= computing(model.graph, values, left)
    excluded = leave_float(model.graph, floats)
    if request.recipe.scheme == "static":
        onnx.save(model, str(prepared))
        _static(prepared, model.graph, values, excluded, request)
    elif request.recipe.scheme == "dynamic":
        dynamic_layers(gm, request.recipe.float_nodes)
        onnx.save(model, str(prepared))
        _dynamic(prepared, excluded, request)
    else:
        quantize_weights(model.graph, excluded)
        onnx.save(model, str(request.out))
    prepared.unlink()


def _grouped_transposed(gm: fx.GraphModule) -> set[str]:
    """Names of the layers whose weight scales onnxruntime cannot match with their biases."""
    return {
        node.name
        for node in gm.graph.nodes
        if node.target == ATEN.conv_transpose2d.input and len(node.args) > 6 and node.args[6] != 1
    }


def _static(
    prepared: Path,
    graph: onnx.GraphProto,
    values: Mapping[str, tuple[str, ...]],
    excluded: list[str],
    request: ExportRequest,
) -> None:
    assert request.ranges is not None and request.calibration is not None
    known = ranges_by_value(graph, values, load_ranges(request.ranges))
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
        nodes_to_exclude=excluded,
        extra_options={
            "TensorQuantOverrides": {
                name: [{"rmin": np.float32(low), "rmax": np.float32(high)}]
                for name, value in known.items()
                for low, high in [value.of(request.recipe.ranges)]
            }
        },
    )


def _dynamic(prepared: Path, excluded: list[str], request: ExportRequest) -> None:
    """int8 weights for the products with constants; activations become uint8 when they arrive."""
    quantize_dynamic(
        str(prepared),
        str(request.out),
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=request.recipe.per_channel,
        weight_type=QuantType.QInt8,
        # A Gemm becomes a MatMul and an Add before it is looked up by its name.
        nodes_to_exclude=[*excluded, *(f"{name}_MatMul" for name in excluded)],
    )


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
