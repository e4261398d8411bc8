"""ONNX Runtime: the file itself, with the quantized tensors inside it as further outputs.

What a quantize node gives is made an output, not what comes out of the dequantize node behind it:
then ONNX Runtime still merges the nodes around it into its integer kernels, as it does on a device.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from edgekit.quantize.base import ExportRequest
from edgekit.quantize.debug import Sample
from edgekit.quantize.onnx_values import values_by_node

#: Given by onnxruntime's quantizer to the value that becomes a quantized output of the model.
_SUFFIX = "_QuantizeLinear_Input"


@dataclass(frozen=True)
class _Tensor:
    """Where the value of a node is to be had; real = (integer - zero_point) * scale."""

    value: str
    scale: np.ndarray | None = None
    zero_point: np.ndarray | None = None

    def real(self, array: np.ndarray) -> np.ndarray:
        if self.scale is None:
            return array
        integer = array.astype(np.float32)
        if self.zero_point is not None:
            integer -= self.zero_point.astype(np.float32)
        real: np.ndarray = integer * self.scale
        return real


def open_reader(request: ExportRequest, wanted: Collection[str]) -> OnnxReader:
    """See :func:`edgekit.quantize.debug.open_reader`."""
    return OnnxReader(request, wanted)


class OnnxReader:
    """A :class:`edgekit.quantize.debug.Reader`."""

    method = "the file's own tensors, in ONNX Runtime"
    rebuilt = False

    def __init__(self, request: ExportRequest, wanted: Collection[str]) -> None:
        model = onnx.load(str(request.out))
        self._inputs = [value.name for value in model.graph.input]
        self._outputs = [value.name for value in model.graph.output]
        values = values_by_node(model.graph, torch.export.load(request.program))
        nodes = {value: node for node in wanted for value in values.get(node, ())}
        self._tensors = _tensors(model.graph, nodes)
        known = {*self._outputs, *self._inputs}
        for value in sorted({t.value for t in self._tensors.values()} - known):
            # Without a type: ONNX Runtime finds it.
            model.graph.output.append(onnx.ValueInfoProto(name=value))
        self._session = _session(model.SerializeToString())

    def read(
        self, sample: Sample, floats: Mapping[str, np.ndarray]
    ) -> tuple[Mapping[str, np.ndarray], list[np.ndarray]]:
        """See :class:`edgekit.quantize.debug.Reader`."""
        feed = dict(zip(self._inputs, sample, strict=True))
        names = [value.name for value in self._session.get_outputs()]
        arrays = {**feed, **dict(zip(names, self._session.run(names, feed), strict=True))}
        found = {}
        for node, tensor in self._tensors.items():
            value = tensor.real(arrays[tensor.value])
            if node in floats and value.size == floats[node].size:
                found[node] = value.reshape(floats[node].shape)
        return found, [arrays[name] for name in self._outputs]


def _tensors(graph: onnx.GraphProto, nodes: Mapping[str, str]) -> dict[str, _Tensor]:
    """Where the value of each node is, of a quantized one the integers; ``nodes`` by ONNX value."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    found = {node: _Tensor(value) for value, node in nodes.items()}
    for node in graph.node:
        if node.op_type != "QuantizeLinear" or node.input[1] not in constants:
            continue
        name = nodes.get(node.input[0].removesuffix(_SUFFIX))
        if name is not None:
            scale, *rest = (
                numpy_helper.to_array(constants[value])
                for value in node.input[1:]
                if value in constants
            )
            found[name] = _Tensor(node.output[0], scale, rest[0] if rest else None)
    return found


def _session(model: bytes) -> onnxruntime.InferenceSession:
    """As exact on x86 CPUs without VNNI as the runner, which says why it asks for what."""
    try:
        return _open(model, "session.x64quantprecision")
    except Fail as error:
        if "replace the existing tensor" not in str(error):
            raise
        return _open(model, "session.disable_quant_qdq")


def _open(model: bytes, entry: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry(entry, "1")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
