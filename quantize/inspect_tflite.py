"""Opens a ``.tflite`` file: what is INT8 in it, and what XNNPACK takes over on this machine.

The structure is read from the flatbuffer itself (schema.fbs of TensorFlow Lite, identifier TFL3).
Which operators the XNNPACK delegate takes is not written in the file: the interpreter is asked,
without running the model.
"""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from edgekit.errors import MissingExtra
from edgekit.quantize import flatbuffer as fb
from edgekit.quantize.macs import Arithmetic, MacOp, size_note, summarise, unreadable
from edgekit.types import Inspection

_LABEL = "a TFLite model"


class _OperatorCode(fb.Table):
    deprecated_builtin_code = fb.Scalar(0, "b")
    custom_code = fb.Text(1)
    builtin_code = fb.Scalar(3, "i")


class _Tensor(fb.Table):
    shape = fb.Scalars(0, "i")
    type = fb.Scalar(1, "b")
    buffer = fb.Scalar(2, "I")


class _Operator(fb.Table):
    opcode_index = fb.Scalar(0, "I")
    inputs = fb.Scalars(1, "i")
    outputs = fb.Scalars(2, "i")


class _SubGraph(fb.Table):
    tensors = fb.Many(0, _Tensor)
    operators = fb.Many(3, _Operator)


class _Buffer(fb.Table):
    data = fb.Blob(0)
    # Models above 2 GB keep their buffers behind the flatbuffer.
    offset = fb.Scalar(1, "Q")
    size = fb.Scalar(2, "Q")


class _Model(fb.Table):
    identifier = b"TFL3"
    operator_codes = fb.Many(1, _OperatorCode)
    subgraphs = fb.Many(2, _SubGraph)
    buffers = fb.Many(4, _Buffer)


# Operators that multiply, with the positions of their activation and weight among the inputs.
_OPERANDS = {
    "CONV_2D": (0, 1),
    "CONV_3D": (0, 1),
    "DEPTHWISE_CONV_2D": (0, 1),
    "FULLY_CONNECTED": (0, 1),
    "BATCH_MATMUL": (0, 1),
    "TRANSPOSE_CONV": (2, 1),
}
_UNCOUNTED = ("LSTM", "RNN", "SVDF", "EINSUM", "CONVOLUTION", "DOT_GENERAL", "CONV_3D_TRANSPOSE")
_EIGHT_BIT = ("INT8", "UINT8")


def inspect(path: Path) -> Inspection:
    """Count the MACs of the main graph and see how XNNPACK splits it.

    Raises:
        UsageError: the file is damaged or not a TFLite model.
        MissingExtra: ai_edge_litert is not installed.
    """
    types, builtins = schema_names()
    try:
        graph = Graph(memoryview(path.read_bytes()), types, builtins)
        counted = [graph.mac_op(i) for i in range(len(graph.names))]
    except fb.Damaged as error:
        raise unreadable(path, _LABEL, error) from error
    notes: list[str] = []
    inside: set[int] | None
    try:
        inside = delegated(path, len(graph.names))
        notes.append(
            f"partitions as LiteRT {metadata.version('ai-edge-litert')} makes them on "
            f"{platform.machine()}; the device's version decides there"
        )
    except (RuntimeError, ValueError) as error:
        inside = None
        reason = str(error).strip().splitlines()[0]
        notes.append(f"delegation unknown: this interpreter cannot load the file ({reason})")
    if graph.other_graphs:
        notes.append(f"{graph.other_graphs} further subgraphs are not counted")
    outside: Counter[str] = Counter()
    macs = []
    for index, (name, op) in enumerate(zip(graph.names, counted, strict=True)):
        if inside is not None and index not in inside:
            outside[name] += 1
        if op is not None:
            taken = None if inside is None else index in inside
            macs.append(MacOp(op.op, op.macs, op.arithmetic, taken))
    notes.append(size_note(path, {f"{kind} constants": n for kind, n in graph.weights.items()}))
    ops = Counter(graph.names)
    return summarise(
        macs,
        outside=outside,
        transposes=ops["TRANSPOSE"],
        quantize_ops=ops["QUANTIZE"] + ops["DEQUANTIZE"],
        weight_bytes=sum(graph.weights.values()),
        uncounted=[n for n in graph.names if n not in _OPERANDS and n.endswith(_UNCOUNTED)]
        + graph.multiplies_elsewhere,
        notes=notes,
    )


class Graph:
    """The main subgraph, with names instead of numbers. Raises Damaged."""

    def __init__(self, data: memoryview, types: dict[int, str], builtins: dict[int, str]) -> None:
        model = _Model.root(data)
        codes = [_code_name(code, builtins) for code in model.operator_codes]
        main = fb.item(model.subgraphs, 0, "subgraph")
        self.other_graphs = len(model.subgraphs) - 1
        self.operators = main.operators
        self.names = [
            fb.item(tuple(codes), op.opcode_index, "operator code") for op in self.operators
        ]
        # Bodies of control flow and of composite operators.
        elsewhere = {
            fb.item(tuple(codes), op.opcode_index, "operator code")
            for graph in model.subgraphs[1:]
            for op in graph.operators
        }
        self.multiplies_elsewhere = [
            f"{name} in another subgraph"
            for name in elsewhere
            if name in _OPERANDS or name.endswith(_UNCOUNTED)
        ]
        tensors = [tensor for graph in model.subgraphs for tensor in graph.tensors]
        self.shapes = [tensor.shape for tensor in main.tensors]
        self.types = [types.get(tensor.type, f"type {tensor.type}") for tensor in main.tensors]
        sizes = [_buffer_bytes(buffer, len(data)) for buffer in model.buffers]
        self.constant = [
            bool(fb.item(tuple(sizes), tensor.buffer, "buffer")) for tensor in main.tensors
        ]
        # A buffer that several tensors share is there once.
        kinds = {tensor.buffer: types.get(tensor.type, "other") for tensor in tensors}
        self.weights: Counter[str] = Counter()
        for index, kind in kinds.items():
            self.weights[kind.lower()] += fb.item(tuple(sizes), index, "buffer")
        self.producer = {t: i for i, op in enumerate(self.operators) for t in op.outputs}

    def mac_op(self, index: int) -> MacOp | None:
        """The operator at ``index`` as a MacOp; None where it does not multiply."""
        name = self.names[index]
        if name not in _OPERANDS:
            return None
        op = self.operators[index]
        x, w = (fb.item(op.inputs, position, f"input of {name}") for position in _OPERANDS[name])
        y = fb.item(op.outputs, 0, f"output of {name}")
        shapes = tuple(self.shapes)
        macs = _count(
            name,
            fb.item(shapes, x, "tensor"),
            fb.item(shapes, w, "tensor"),
            fb.item(shapes, y, "tensor"),
        )
        return MacOp(name, macs, self._arithmetic(x, w))

    def _arithmetic(self, x: int, w: int) -> Arithmetic:
        activation, weight = self.types[x], self.types[w]
        if activation in _EIGHT_BIT and weight in _EIGHT_BIT:
            return "static"
        if activation == "INT16" and weight in _EIGHT_BIT:
            return "wide"
        if activation == "FLOAT32" and weight in _EIGHT_BIT:
            # The "hybrid" kernels quantize the activation, then multiply integers.
            return "dynamic"
        if weight.startswith("FLOAT"):
            source = self.producer.get(w)
            if source is not None and self.names[source] == "DEQUANTIZE":
                original = fb.item(self.operators[source].inputs, 0, "input of DEQUANTIZE")
                kind = fb.item(tuple(self.types), original, "tensor")
                if kind in _EIGHT_BIT and self.constant[original]:
                    return "weight_only"
            return "float"
        return "other"


def _count(name: str, x: Sequence[int], w: Sequence[int], y: Sequence[int]) -> int:
    """MACs from the shapes of activation, weight and output (NHWC, weights OHWI)."""
    rank = {"FULLY_CONNECTED": 2, "BATCH_MATMUL": 2, "CONV_3D": 5}.get(name, 4)
    if len(w) < rank or len(x) < 1 or (name == "BATCH_MATMUL" and min(len(x), len(y)) < 2):
        raise fb.Damaged(f"{name} has operands of shapes {tuple(x)} and {tuple(w)}")
    outputs = math.prod(y)
    if name == "CONV_2D":
        return outputs * math.prod(w[1:])
    if name == "DEPTHWISE_CONV_2D":
        return outputs * w[1] * w[2]
    if name == "CONV_3D":  # weights DHWIO
        return outputs * math.prod(w[:4])
    if name == "TRANSPOSE_CONV":
        return math.prod(x) * math.prod(w[:3])
    if name == "FULLY_CONNECTED":
        return outputs * w[-1]
    # Either operand may be stored transposed; the output's row count tells the inner length.
    return outputs * (x[-1] * x[-2] // y[-2] if y[-2] else 0)


def _code_name(code: _OperatorCode, builtins: dict[int, str]) -> str:
    # Codes above 127 did not fit the first field, so a second one was added; readers take the
    # larger (GetBuiltinCode in schema_utils.cc).
    number = max(code.builtin_code, code.deprecated_builtin_code)
    name = builtins.get(number, f"BUILTIN_{number}")
    return code.custom_code if name == "CUSTOM" and code.custom_code else name


def _buffer_bytes(buffer: _Buffer, total: int) -> int:
    # Offset 1 marks "no data behind the flatbuffer" next to 0.
    if buffer.offset > 1:
        if buffer.offset + buffer.size > total:
            raise fb.Damaged(f"a buffer ends at byte {buffer.offset + buffer.size} of {total}")
        return buffer.size
    return len(buffer.data)


def delegated(path: Path, count: int) -> set[int]:
    """Which of the ``count`` operators run inside XNNPACK partitions, by index.

    The interpreter keeps the original operators in its list and appends one DELEGATE entry per
    partition with the tensors that enter and leave; the operators between those are inside.

    Raises:
        RuntimeError, ValueError: the interpreter refuses the file.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    # The public API tells tensors only; this is what the vendor's own tools use as well.
    nodes: list[dict[str, Any]] = interpreter._get_ops_details()
    producer = {int(t): i for i, node in enumerate(nodes[:count]) for t in node["outputs"]}
    inside: set[int] = set()
    for node in nodes[count:]:
        if node["op_name"] != "DELEGATE":
            continue
        entering = {int(t) for t in node["inputs"]}
        reached = [int(t) for t in node["outputs"]]
        while reached:
            tensor = reached.pop()
            index = producer.get(tensor)
            if tensor in entering or index is None or index in inside:
                continue
            inside.add(index)
            reached += [int(t) for t in nodes[index]["inputs"]]
    return inside


def schema_names() -> tuple[dict[int, str], dict[int, str]]:
    """Names of tensor types and builtin operators, from the schema bundled with LiteRT."""
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise MissingExtra("ai_edge_litert", "tflite") from error

    def names(enum: type) -> dict[int, str]:
        return {v: k for k, v in vars(enum).items() if isinstance(v, int)}

    return names(schema.TensorType), names(schema.BuiltinOperator)
