"""Weight-only INT8 for ONNX: int8 constants behind DequantizeLinear, everything else in float.

onnxruntime's tools quantize weights alone in blocks of 4 bit only, for an operator of their own;
this is plain ONNX, which every runtime of the format reads.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import helper, numpy_helper

#: The output-channel axis of the weight, the second input of each operator.
_CHANNELS = {"Conv": 0, "ConvTranspose": 1, "MatMul": -1, "Gemm": -1}


def quantize_weights(graph: onnx.GraphProto, excluded: Collection[str]) -> int:
    """Make the constant weights of all layers int8, but for the nodes named in ``excluded``.

    Symmetric scales per output channel, max|w| / 127. Returns the number of weights.
    """
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, index))
    made = 0
    for name, tensor in initializers.items():
        axes = {_axis(node, index, len(tensor.dims)) for node, index in readers.get(name, ())}
        named = any(node.name in excluded for node, _ in readers.get(name, ()))
        # A constant that is used in other ways too is better kept as it is.
        if len(axes) != 1 or None in axes or named or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        (axis,) = axes
        assert axis is not None
        _replace(graph, tensor, axis)
        for node, index in readers[name]:
            node.input[index] = f"{name}_dequantized"
        made += 1
    return made


def _axis(node: onnx.NodeProto, index: int, rank: int) -> int | None:
    """The channel axis of an input that is a layer's weight; None for any other input."""
    if node.op_type not in _CHANNELS or index != 1 or rank < 2:
        return None
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if transposed else _CHANNELS[node.op_type] % rank


def _replace(graph: onnx.GraphProto, tensor: onnx.TensorProto, axis: int) -> None:
    weight = numpy_helper.to_array(tensor)
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.maximum(np.abs(weight).max(others), np.float32(1e-9)) / np.float32(127)
    column = scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    integers = np.clip(np.rint(weight / column), -127, 127).astype(np.int8)
    name = tensor.name
    parts = (
        (integers, f"{name}_quantized"),
        (scale.astype(np.float32), f"{name}_scale"),
        (np.zeros_like(scale, np.int8), f"{name}_zero_point"),
    )
    graph.initializer.remove(tensor)
    graph.initializer.extend(numpy_helper.from_array(array, part) for array, part in parts)
    made = helper.make_node(
        "DequantizeLinear",
        [part for _, part in parts],
        [f"{name}_dequantized"],
        name=f"{name}_dequantize",
        axis=axis,
    )
    graph.node.insert(0, made)
