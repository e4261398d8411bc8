"""Reads the payload of an XNNPACK delegate in a ``.pte`` file and counts its MACs by arithmetic.

The payload is a header (magic XH00, ExecuTorch's XNNHeader) that locates a flatbuffer graph and the
constants behind it; constants may also be named data of the program. Older payloads are the bare
flatbuffer. The schema is backends/xnnpack/serialization/runtime_schema.fbs of ExecuTorch.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgekit.quantize import flatbuffer as fb
from edgekit.quantize.macs import Arithmetic, MacOp, attention_macs

_HEADER = struct.Struct("<4x4sHIIIQ")  # magic, length, flatbuffer offset and size, constants

# enum XNNDatatype
_FLOATS = (1, 2, 13, 14)
_INT8_STATIC = (3, 4)
_INT8_WEIGHTS = (3, 6)
_INT8_DYNAMIC = (9, 11)


@dataclass
class XnnpackCounts:
    """What was found so far. ``constants`` maps where a constant lies to its size, once each."""

    ops: list[MacOp] = field(default_factory=list)
    transposes: int = 0
    converts: int = 0
    constants: dict[str, int] = field(default_factory=dict)
    external: int = 0
    uncounted: list[str] = field(default_factory=list)
    operators: Counter[str] = field(default_factory=Counter)


class _TensorValue(fb.Table):
    datatype = fb.Scalar(0, "h")
    dims = fb.Scalars(2, "I")
    constant_buffer_idx = fb.Scalar(3, "I")
    id_out = fb.Scalar(6, "I")
    dq_datatype = fb.Scalar(7, "h")


class _QuantizedTensorValue(fb.Table):
    tensor_value = fb.One(0, _TensorValue)


class _Value(fb.Table):
    def tensor(self) -> _TensorValue:
        _, value = self.union(0, {1: _TensorValue, 2: _QuantizedTensorValue})
        if isinstance(value, _QuantizedTensorValue):
            value = value.tensor_value
        if not isinstance(value, _TensorValue):
            raise fb.Damaged("an XNNPACK value is not a tensor")
        return value


class _Conv(fb.Table):
    kernel_height = fb.Scalar(4, "I")
    kernel_width = fb.Scalar(5, "I")
    group_input_channels = fb.Scalar(10, "I")
    group_output_channels = fb.Scalar(11, "I")
    input1_id = fb.Scalar(15, "I")
    filter_id = fb.Scalar(16, "I")
    output_id = fb.Scalar(18, "I")


class _FullyConnected(fb.Table):
    input1_id = fb.Scalar(0, "I")
    filter_id = fb.Scalar(1, "I")
    output_id = fb.Scalar(3, "I")


class _Product(fb.Table):
    input1_id = fb.Scalar(0, "I")
    input2_id = fb.Scalar(1, "I")
    output_id = fb.Scalar(2, "I")


class _Attention(fb.Table):
    query_id = fb.Scalar(0, "I")
    key_id = fb.Scalar(1, "I")
    value_id = fb.Scalar(2, "I")


# Positions in union XNodeUnion, counted from 1.
_FULLY_CONNECTED, _TRANSPOSE, _CONV, _DEPTHWISE, _CONVERT = 2, 5, 7, 13, 18
_SDPA, _BATCH_PRODUCT, _CONV_TRANSPOSE = 36, 37, 39
_KINDS: Mapping[int, type[fb.Table]] = {
    _FULLY_CONNECTED: _FullyConnected,
    _CONV: _Conv,
    _DEPTHWISE: _Conv,
    _CONV_TRANSPOSE: _Conv,
    _BATCH_PRODUCT: _Product,
    _SDPA: _Attention,
}
#: All of union XNodeUnion, in the order of the schema.
OPERATORS = dict(
    enumerate(
        (
            *("Add", "FullyConnected", "Softmax", "Sigmoid", "StaticTranspose", "Clamp", "Conv2d"),
            *("Div", "StaticResizeBilinear2D", "StaticConstantPad", "AvgPooling2d", "Minimum"),
            *("DepthwiseConv2d", "MaxPooling2d", "Multiply", "Subtract", "Floor", "Convert"),
            *("GlobalAvgPooling2d", "StaticReshape", "ArgMaxPooling2d", "SquareRoot", "Ceiling"),
            *("Hardswish", "LeakyReLU", "Maximum", "Negate", "Square", "ELU", "Abs", "PReLU"),
            *("Concatenate2", "Concatenate3", "Concatenate4", "StaticSlice"),
            *("ScaledDotProductAttention", "BatchMatrixMultiply", "Concatenate5"),
            *("ConvTranspose2d", "ReciprocalSquareRoot", "Log", "Gelu", "Tanh", "Exp", "Sin"),
            *("Copy", "Cos"),
        ),
        start=1,
    )
)
_NAMES = {
    _FULLY_CONNECTED: "XNNFullyConnected",
    _CONV: "XNNConv2d",
    _DEPTHWISE: "XNNDepthwiseConv2d",
    _CONV_TRANSPOSE: "XNNConvTranspose2d",
    _BATCH_PRODUCT: "XNNBatchMatrixMultiply",
    _SDPA: "XNNScaledDotProductAttention",
}


class _Node(fb.Table):
    def operation(self) -> tuple[int, fb.Table | None]:
        return self.union(0, _KINDS)


class _ConstantBuffer(fb.Table):
    storage = fb.Blob(0)


class _ConstantOffset(fb.Table):
    offset = fb.Scalar(0, "Q")
    size = fb.Scalar(1, "Q")
    named_key = fb.Text(2)


class _XnnGraph(fb.Table):
    xnodes = fb.Many(1, _Node)
    xvalues = fb.Many(2, _Value)
    constant_buffer = fb.Many(6, _ConstantBuffer)
    constant_data = fb.Many(8, _ConstantOffset)


def read_payload(
    payload: memoryview, key: str, named: Mapping[str, memoryview], found: XnnpackCounts
) -> None:
    """Add what one delegate call does to ``found``.

    ``key`` says where the payload lies in the file; ``named`` is the program's named data.

    Raises:
        Damaged: the payload is cut short or inconsistent.
    """
    graph, constants = _locate(payload)
    inline = sum(len(buffer.storage) for buffer in graph.constant_buffer)
    found.constants[key] = inline + constants
    _named_constants(graph, named, found)
    values = {value.tensor().id_out: value.tensor() for value in graph.xvalues}
    for node in graph.xnodes:
        kind, operation = node.operation()
        found.operators[OPERATORS.get(kind, f"XNNPACK operator {kind}")] += 1
        found.transposes += kind == _TRANSPOSE
        found.converts += kind == _CONVERT
        if operation is not None:
            macs, arithmetic = _mac_op(kind, operation, values)
            found.ops.append(MacOp(_NAMES[kind], macs, arithmetic, delegated=True))


def _locate(payload: memoryview) -> tuple[_XnnGraph, int]:
    """The graph and how many bytes of constants are behind it."""
    if bytes(payload[4:8]) != b"XH00":
        return _graph(payload), 0
    if len(payload) < _HEADER.size:
        raise fb.Damaged("an XNNPACK header is cut short")
    _, _, start, size, constants_at, constants = _HEADER.unpack_from(payload)
    if max(start + size, constants_at + constants) > len(payload):
        raise fb.Damaged("an XNNPACK payload is cut short")
    return _graph(payload[start : start + size]), constants


def _graph(data: memoryview) -> _XnnGraph:
    if bytes(data[4:8]) not in (b"XN00", b"XN01"):
        raise fb.Damaged("an XNNPACK payload has an unknown identifier")
    return _XnnGraph.root(data)


def _named_constants(
    graph: _XnnGraph, named: Mapping[str, memoryview], found: XnnpackCounts
) -> None:
    for constant in graph.constant_data:
        if constant.named_key and constant.named_key in named:
            found.constants[constant.named_key] = len(named[constant.named_key])
        elif constant.named_key:
            found.external += 1


def _mac_op(
    kind: int, operation: fb.Table, values: Mapping[int, _TensorValue]
) -> tuple[int, Arithmetic]:
    def tensor(number: int) -> _TensorValue:
        if number not in values:
            raise fb.Damaged(f"XNNPACK value {number} does not exist")
        return values[number]

    if isinstance(operation, _Attention):
        q, k, v = (tensor(n) for n in (operation.query_id, operation.key_id, operation.value_id))
        if not (q.dims and len(k.dims) > 1 and v.dims):
            raise fb.Damaged("an attention has operands without shape")
        return attention_macs(q.dims, k.dims, v.dims), "float"
    assert isinstance(operation, _Conv | _FullyConnected | _Product)
    second = operation.input2_id if isinstance(operation, _Product) else operation.filter_id
    x, w, y = (tensor(n) for n in (operation.input1_id, second, operation.output_id))
    if isinstance(operation, _Conv):
        taps = operation.kernel_height * operation.kernel_width
        if kind == _CONV_TRANSPOSE:
            macs = math.prod(x.dims) * taps * operation.group_output_channels
        else:
            macs = math.prod(y.dims) * taps * operation.group_input_channels
    elif not x.dims or not y.dims:
        raise fb.Damaged("a matrix product has an operand without shape")
    elif isinstance(operation, _FullyConnected):  # weights may be stored either way round
        macs = math.prod(y.dims[:-1]) * math.prod(w.dims)
    else:
        macs = math.prod(y.dims) * x.dims[-1]
    return macs, _arithmetic(x, w)


def _arithmetic(x: _TensorValue, w: _TensorValue) -> Arithmetic:
    if w.datatype in _FLOATS:
        return "float"
    weights = w.datatype in _INT8_WEIGHTS
    if x.datatype in _INT8_STATIC and weights:
        return "static"
    if weights and (x.datatype in _INT8_DYNAMIC or x.dq_datatype in _INT8_DYNAMIC):
        return "dynamic"
    return "weight_only" if x.datatype in _FLOATS and weights else "other"
