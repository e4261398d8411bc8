"""ONNX Runtime: ``.onnx`` files, INT8 in QDQ form by onnxruntime's own quantizer.

The exporter names values after the nodes of the prepared program, so every activation takes the
range of edgekit's calibration; onnxruntime calibrates none itself.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgekit.data import open_samples
from edgekit.quantize.base import ExportRequest, tool_versions
from edgekit.quantize.calibrate import load_ranges


def export(request: ExportRequest) -> Mapping[str, str]:
    """See :class:`edgekit.quantize.base.Exporter`."""
    program = torch.export.load(request.program)
    float_file = request.out.with_suffix(".float.onnx")
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(program, (), float_file, dynamo=True, external_data=False, verbose=False)
    if request.recipe.precision == "fp32":
        float_file.replace(request.out)
    else:
        _quantize(float_file, request)
        float_file.unlink()
    return tool_versions("onnx", "onnxruntime", "onnxscript", "torch")


def _quantize(float_file: Path, request: ExportRequest) -> None:
    assert request.ranges is not None and request.calibration is not None
    prepared = float_file.with_suffix(".pre.onnx")
    quant_pre_process(str(float_file), str(prepared))
    graph = onnx.load(str(prepared)).graph
    values = {value.name for value in (*graph.input, *graph.output)}
    values |= {name for node in graph.node for name in node.output}
    ranges = {
        name: [{"rmin": np.float32(low), "rmax": np.float32(high)}]
        for name, value in load_ranges(request.ranges).items()
        if name in values
        for low, high in [value.of(request.recipe.ranges)]
    }
    quantize_static(
        str(prepared),
        str(request.out),
        _FirstSample([value.name for value in graph.input], request.calibration),
        quant_format=QuantFormat.QDQ,
        per_channel=request.recipe.per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"TensorQuantOverrides": ranges},
    )
    prepared.unlink()


class _FirstSample(CalibrationDataReader):  # type: ignore[misc]
    """quantize_static insists on calibrating; values with a range of ours ignore the outcome."""

    def __init__(self, names: list[str], calibration: Path) -> None:
        stacks = open_samples(calibration).inputs
        feed = {name: np.array(stack[0]) for name, stack in zip(names, stacks, strict=True)}
        self._feeds: Iterator[dict[str, np.ndarray]] = iter([feed])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)
