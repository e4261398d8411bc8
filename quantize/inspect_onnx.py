"""Opens an ``.onnx`` file: what ONNX Runtime makes of it, not only what the file says.

Quantize-dequantize pairs in a file are a wish; only the optimiser decides whether an integer kernel
takes their place. So the file is loaded, the optimised graph is saved and that one is counted. The
level is "extended": the next one rewrites layouts for the very machine that it runs on.

ONNX Runtime also tells the shapes: each tensor that matters is made an output of the optimised
graph, and the session reports it. Nothing is run.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekit.errors import MissingExtra, UsageError
from edgekit.quantize.macs import Arithmetic, MacOp, size_note, summarise, unreadable
from edgekit.types import Inspection

_LABEL = "an ONNX model"

# Operators that multiply, with the positions of activation and weight among their inputs.
_FLOAT_OPS = dict.fromkeys(
    ("Conv", "ConvTranspose", "Gemm", "MatMul", "FusedConv", "FusedGemm", "FusedMatMul"), (0, 1)
)
INT8_OPS = {
    "QLinearConv": (0, 3),
    "QLinearMatMul": (0, 3),
    "QGemm": (0, 3),
    "ConvInteger": (0, 1),
    "MatMulInteger": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (0, 1),
}
# The zero point of the activation, which is computed where the quantization is dynamic.
_ZERO_POINT = {"ConvInteger": 2, "MatMulInteger": 2, "MatMulIntegerToFloat": 4}
# Input, weights of the input and of the state.
_RECURRENT = ("LSTM", "GRU", "RNN")
# ONNX Runtime's product with packed weights, which it makes of DequantizeLinear and MatMul.
_PACKED = "MatMulNBits"
#: Its attribute accuracy_level says what activations may become: this one int8, block by block.
_PACKED_INT8 = 4
_UNCOUNTED = ("Attention", *_RECURRENT, "Einsum", _PACKED, "MatMulBnb4", "Conv")
QUANTIZE_OPS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


def inspect(path: Path) -> Inspection:
    """Count the MACs of the graph that ONNX Runtime would run.

    A symbolic first dimension of an input counts as batch 1. Where this ONNX Runtime cannot load a
    valid file, the file itself is counted and a note says so.

    Raises:
        UsageError: the file is damaged, not an ONNX model, or its weights file is missing.
        MissingExtra: onnx or onnxruntime is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtra("onnx", "onnx") from error
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtra("onnxruntime", "onnx") from error

    try:
        model = onnx.load(str(path), load_external_data=False)
    # protobuf's DecodeError; its module has no types and is no dependency of ours.
    except Exception as error:
        raise unreadable(path, _LABEL, error) from error
    if not model.graph.node or not model.opset_import:
        raise unreadable(path, _LABEL, "it holds no graph")
    weights = constant_bytes(path, model)
    try:
        graph = optimised(path, model)
        note = f"graph as ONNX Runtime {onnxruntime.__version__} optimises it"
    # ONNX Runtime's exceptions have no common base of their own.
    except Exception as error:
        graph = as_written(path, model)
        reason = str(error).strip().splitlines()[0][:200]
        note = (
            f"graph as the file says: ONNX Runtime {onnxruntime.__version__} refuses it ({reason})"
        )
    ops, unknown = graph.mac_ops()
    names = [node.op_type for node in graph.nodes]
    notes = [note]
    if unknown:
        notes.append(f"no static shape for {unknown} operators that multiply")
        ops = []
    if graph.has_bodies():
        notes.append("operators in If, Loop and Scan bodies are not counted")
    notes.append(size_note(path, weights))
    quantized = any(op.arithmetic in ("static", "dynamic") for op in ops)
    return summarise(
        ops,
        outside=Counter(graph.float_nodes()) if quantized else {},
        transposes=names.count("Transpose"),
        quantize_ops=sum(names.count(name) for name in QUANTIZE_OPS),
        weight_bytes=sum(weights.values()),
        uncounted=graph.uncounted + (["operators of unknown shape"] if unknown else []),
        notes=notes,
    )


class _Graph:
    """An ONNX graph with the shape and type of every tensor that is known."""

    def __init__(
        self, graph: Any, shapes: Mapping[str, list[Any]], types: Mapping[str, str], *, fused: bool
    ) -> None:
        self.nodes = list(graph.node)
        self.fused = fused
        self.uncounted: list[str] = []
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        # None for a dimension that is a symbol.
        self.shapes: dict[str, list[Any]] = {
            **{name: _numbers(shape) for name, shape in shapes.items()},
            **{tensor.name: list(tensor.dims) for tensor in graph.initializer},
        }
        self.types = types
        self.producer = {name: node for node in self.nodes for name in node.output}

    def mac_ops(self) -> tuple[list[MacOp], int]:
        """All that multiply, and for how many of them a shape is unknown."""
        found: list[MacOp] = []
        unknown = 0
        for node in self.nodes:
            operands = _FLOAT_OPS.get(node.op_type) or INT8_OPS.get(node.op_type)
            arithmetic: Arithmetic = "float"
            try:
                if operands is not None:
                    x, w = (node.input[position] for position in operands)
                    macs = self._count(node, x, w)
                    arithmetic = self._arithmetic(node, x, w)
                elif node.op_type == _PACKED and _integer(node, "bits", 4) == 8:
                    macs = math.prod(self.shapes[node.output[0]]) * _integer(node, "K", 0)
                    arithmetic = "dynamic" if is_int8(node) else "weight_only"
                elif node.op_type in _RECURRENT:
                    x, *weights = (self.shapes[name] for name in node.input[:3])
                    macs = math.prod(x[:-1]) * sum(math.prod(w) for w in weights)
                elif node.op_type == "Einsum" and len(node.input) <= 2:
                    macs = self._einsum(node)
                else:
                    self.uncounted += self._uncounted(node)
                    continue
            except (KeyError, TypeError):  # no shape at all, or a symbol in it
                unknown += 1
                continue
            if macs or operands is not None:
                found.append(MacOp(node.op_type, macs, arithmetic))
        return found, unknown

    def _einsum(self, node: Any) -> int:
        """One multiplication for each combination of the indices; none with one operand."""
        if len(node.input) < 2:
            return 0
        (equation,) = (a.s.decode() for a in node.attribute if a.name == "equation")
        sizes: dict[str, int] = {}
        for term, name in zip(equation.split("->")[0].split(","), node.input, strict=True):
            shape = list(self.shapes[name])
            letters = term.replace(" ", "")
            before, dots, after = letters.partition("...")
            # Named from the right, as broadcasting aligns them.
            spread = [str(i) for i in range(len(shape) - len(before) - len(after), 0, -1)]
            for index, size in zip(
                [*before, *(spread if dots else []), *after], shape, strict=True
            ):
                sizes[index] = max(int(size), sizes.get(index, 1))
        return math.prod(sizes.values())

    def _uncounted(self, node: Any) -> list[str]:
        """What multiplies in a node without a formula, in its bodies too."""
        if node.op_type.endswith(_UNCOUNTED):
            return [node.op_type]
        bodies = [a.g for a in node.attribute if a.HasField("g")]
        bodies += [graph for a in node.attribute for graph in a.graphs]
        inner = [n for body in bodies for n in body.node]
        found = [name for n in inner for name in self._uncounted(n)]
        known = {*_FLOAT_OPS, *INT8_OPS}
        found += [n.op_type for n in inner if n.op_type in known]
        return [name if " in " in name else f"{name} in {node.op_type}" for name in found]

    def _count(self, node: Any, x: str, w: str) -> int:
        if "Conv" in node.op_type:
            carrier = x if node.op_type == "ConvTranspose" else node.output[0]
            return int(math.prod(self.shapes[carrier]) * math.prod(self.shapes[w][1:]))
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        inner = self.shapes[x][-2 if transposed else -1]
        return int(math.prod(self.shapes[node.output[0]]) * inner)

    def _arithmetic(self, node: Any, x: str, w: str) -> Arithmetic:
        if node.op_type in INT8_OPS:
            if node.op_type == "DynamicQuantizeMatMul":
                return "dynamic"
            position = _ZERO_POINT.get(node.op_type)
            if position is None:
                return "static"
            fixed = len(node.input) > position and node.input[position] in self.constants
            return "static" if fixed else "dynamic"
        weights = self._dequantized_8_bit(w)
        if weights and self._dequantized_8_bit(x):
            return "unfused" if self.fused else "static"
        return "weight_only" if weights else "float"

    def _dequantized_8_bit(self, name: str) -> bool:
        source = self.producer.get(name)
        if source is None or source.op_type != "DequantizeLinear":
            return False
        from onnx import TensorProto

        # The zero point has the type of the quantized tensor; without one it is uint8.
        if len(source.input) < 3 or source.input[2] not in self.constants:
            return True
        kind = self.constants[source.input[2]].data_type
        return kind in (TensorProto.INT8, TensorProto.UINT8)

    def float_nodes(self) -> Iterator[str]:
        """Operators that produce float values, apart from those that change the type."""
        for node in self.nodes:
            kinds = [self.types.get(name, "") for name in node.output]
            if node.op_type in QUANTIZE_OPS or is_int8(node):
                continue
            if any("float" in kind for kind in kinds):
                yield node.op_type

    def has_bodies(self) -> bool:
        return any(a.HasField("g") or a.graphs for node in self.nodes for a in node.attribute)


def is_int8(node: Any) -> bool:
    """Whether an operator of the optimised graph multiplies int8 by int8."""
    if node.op_type == _PACKED and _integer(node, "bits", 4) == 8:
        return _integer(node, "accuracy_level", 0) == _PACKED_INT8
    return node.op_type in INT8_OPS


def _integer(node: Any, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def optimised(path: Path, model: Any) -> _Graph:
    """The graph after ONNX Runtime's optimiser. Raises whatever ONNX Runtime raises."""
    import onnx
    import onnxruntime

    levels = onnxruntime.GraphOptimizationLevel
    with tempfile.TemporaryDirectory(prefix="edgekit-inspect-") as folder:
        optimised_path, probe_path = f"{folder}/optimised.onnx", f"{folder}/probe.onnx"
        options = _session_options(levels.ORT_ENABLE_EXTENDED)
        for symbol in _batch_symbols(model):
            options.add_free_dimension_override_by_name(symbol, 1)
        options.optimized_model_filepath = optimised_path
        # All weights into one file beside it, whatever their size and wherever they were.
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_file_name", "weights"
        )
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        optimised = onnx.load(optimised_path, load_external_data=False)
        probe = onnx.ModelProto()
        probe.CopyFrom(optimised)
        outputs = {value.name for value in optimised.graph.output}
        for node in optimised.graph.node:
            for name in node.output:
                if name and name not in outputs:
                    probe.graph.output.append(onnx.ValueInfoProto(name=name))
        onnx.save(probe, probe_path)
        session = onnxruntime.InferenceSession(
            probe_path,
            _session_options(levels.ORT_DISABLE_ALL),
            providers=["CPUExecutionProvider"],
        )
    values = [*session.get_inputs(), *session.get_outputs()]
    return _Graph(
        optimised.graph,
        {value.name: value.shape for value in values},
        {value.name: value.type for value in values},
        fused=True,
    )


def _session_options(level: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = level
    return options


def as_written(path: Path, model: Any) -> _Graph:
    """The graph of a valid file that ONNX Runtime cannot load."""
    import onnx

    try:
        onnx.checker.check_model(str(path))
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise unreadable(path, _LABEL, str(error).strip().splitlines()[0]) from error
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    batch = set(_batch_symbols(model))
    return _Graph(
        inferred,
        {
            value.name: [
                1 if dim.dim_param in batch else dim.dim_value or None
                for dim in value.type.tensor_type.shape.dim
            ]
            for value in values
        },
        {
            value.name: onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type).lower()
            for value in values
        },
        fused=False,
    )


def _numbers(shape: list[Any]) -> list[int | None]:
    return [size if isinstance(size, int) else None for size in shape]


def _batch_symbols(model: Any) -> set[str]:
    first = [list(value.type.tensor_type.shape.dim)[:1] for value in model.graph.input]
    return {dim.dim_param for dims in first for dim in dims if dim.dim_param}


def constant_bytes(path: Path, model: Any) -> Counter[str]:
    """Bytes of constants by type; checks that weights kept in other files are there."""
    import onnx

    found: Counter[str] = Counter()
    tensors = list(model.graph.initializer)
    tensors += [a.t for node in model.graph.node for a in node.attribute if a.HasField("t")]
    for tensor in tensors:
        try:
            kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
            bits = 4 if kind.endswith("int4") else 8 * _item_bytes(tensor)
        except (KeyError, ValueError) as error:
            raise unreadable(path, _LABEL, f"tensor type {tensor.data_type} is unknown") from error
        found[f"{kind} constants"] += -(-math.prod(tensor.dims) * bits // 8)
        for entry in tensor.external_data:
            if entry.key == "location" and not (path.parent / entry.value).is_file():
                raise UsageError(
                    f"{path} keeps its weights in {entry.value}, which is not beside it.",
                    remedy=f"Copy {entry.value} into {path.parent}.",
                )
    return found


def _item_bytes(tensor: Any) -> int:
    from onnx import helper

    size: int = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return size
