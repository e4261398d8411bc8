"""TFLite (LiteRT): ``.tflite`` files through litert-torch, INT8 by ai-edge-quantizer.

Each operator is converted under the name of its node in the prepared program, so that the tensors
of the TFLite file can be told apart and get the ranges of edgekit's calibration. A name alone is
not trusted (layout changes inherit it): node and tensor must also agree on the extremes of one
sample. Tensors that the converter invented get the extremes of the whole calibration set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import qtyping, quantizer, recipe
from torch import fx

from edgekit.data import open_samples
from edgekit.files import write_atomic
from edgekit.quantize.base import ExportRequest, example_inputs, tool_versions
from edgekit.quantize.calibrate import Range, extremes_of_sample, load_ranges
from edgekit.quantize.prepare import as_module

_NODE_CLASS = "edgekit.Node"
_NODE_NAME = re.compile(re.escape(_NODE_CLASS) + r"_(\w+)")
#: How far the extremes of one sample may be apart, as a share of their distance, for a node and a
#: tensor to be the same: float kernels differ in the last digits.
_SAME = 1e-3

_Calibration = dict[str, dict[str, Any]]


def export(request: ExportRequest) -> Mapping[str, str]:
    """See :class:`edgekit.quantize.base.Exporter`."""
    gm = as_module(torch.export.load(request.program))
    for node in gm.graph.nodes:
        if node.op == "call_function":
            node.meta["nn_module_stack"] = {"edgekit": (node.name, _NODE_CLASS)}
    example = example_inputs(request.inputs)
    float_file = request.out.with_suffix(".float.tflite")
    litert_torch.convert(gm, example).export(str(float_file))
    if request.recipe.precision == "fp32":
        float_file.replace(request.out)
    else:
        write_atomic(request.out, _quantize(float_file, gm, request))
        float_file.unlink()
    return tool_versions("litert-torch", "ai-edge-litert", "ai-edge-quantizer", "torch")


def _quantize(float_file: Path, gm: fx.GraphModule, request: ExportRequest) -> bytes:
    quantizing = quantizer.Quantizer(str(float_file), recipe.static_wi8_ai8())
    for edge in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        # Float inputs and outputs: every runtime of a bundle is fed and read alike.
        quantizing.update_quantization_recipe(
            regex=".*", operation_name=edge, algorithm_key="no_quantize"
        )
    assert request.ranges is not None and request.calibration is not None
    stacks = open_samples(request.calibration).inputs
    signature, names = _signature(float_file)
    first = {name: stack[0] for name, stack in zip(names, stacks, strict=True)}
    calibration: _Calibration = quantizing.calibrate({signature: [first]})
    inputs = tuple(torch.from_numpy(np.array(stack[0])) for stack in stacks)
    unknown = _apply_ranges(
        calibration, load_ranges(request.ranges), request.recipe.ranges, gm, inputs
    )
    if unknown:
        observed = _observe(quantizing, signature, names, stacks)
        for name in unknown:
            _set(calibration[name], *observed[name])
    result = quantizing.quantize(
        calibration, enable_progress_bar=False, enable_progress_report=False
    )
    return bytes(result.quantized_model)


def _signature(model: Path) -> tuple[str, list[str]]:
    """The name of the file's one signature and of its inputs, in the order of the model's."""
    ((name, signature),) = Interpreter(str(model)).get_signature_list().items()
    inputs = sorted(signature["inputs"], key=lambda key: int(key.rpartition("_")[2]))
    return name, inputs


def _apply_ranges(
    calibration: _Calibration,
    ranges: Mapping[str, Range],
    kind: str,
    gm: fx.GraphModule,
    inputs: tuple[torch.Tensor, ...],
) -> list[str]:
    """Give each tensor the range of the node that it is; returns the names of those without one."""
    nodes = extremes_of_sample(gm, inputs)
    unknown = []
    for name, entry in calibration.items():
        tensor = float(np.min(entry["min"])), float(np.max(entry["max"]))
        for node in (*_NODE_NAME.findall(name), *nodes):
            if node in nodes and node in ranges and _same(nodes[node], tensor):
                _set(entry, *ranges[node].of(kind))
                break
        else:
            unknown.append(name)
    return unknown


def _same(a: tuple[float, float], b: tuple[float, float]) -> bool:
    width = max(a[1] - a[0], 1e-12)
    return abs(a[0] - b[0]) <= _SAME * width and abs(a[1] - b[1]) <= _SAME * width


def _set(entry: dict[str, Any], low: float, high: float) -> None:
    entry["min"] = np.full_like(entry["min"], low)
    entry["max"] = np.full_like(entry["max"], high)


def _observe(
    quantizing: quantizer.Quantizer,
    signature: str,
    names: Sequence[str],
    stacks: Sequence[np.ndarray],
) -> dict[str, tuple[float, float]]:
    """Global extremes over the calibration set.

    ``calibrate`` itself keeps a moving average, which forgets the extremes that clip; so it is
    asked for one sample at a time.
    """
    found: dict[str, tuple[float, float]] = {}
    for feed in _feeds(names, stacks):
        for name, entry in quantizing.calibrate({signature: [feed]}).items():
            low, high = found.get(name, (0.0, 0.0))
            found[name] = (
                min(low, float(np.min(entry["min"]))),
                max(high, float(np.max(entry["max"]))),
            )
    return found


def _feeds(names: Sequence[str], stacks: Sequence[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    for i in range(len(stacks[0])):
        yield {name: np.asarray(stack[i]) for name, stack in zip(names, stacks, strict=True)}
