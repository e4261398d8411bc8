"""Opens a ``.pte`` file: what runs inside XNNPACK, what of it is INT8, and what stays outside.

A program lists its instructions: kernel calls and calls of delegates. An XNNPACK delegate is a
flatbuffer of its own behind a small header. Everything needed is in the file, so neither ExecuTorch
nor torch has to be installed; the schemas are exir/_serialize/program.fbs (identifier ET12) and
backends/xnnpack/serialization/{runtime_schema,schema}.fbs (XN01, before that XN00) of ExecuTorch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from edgekit.quantize import flatbuffer as fb
from edgekit.quantize.macs import MacOp, multiplies, size_note, summarise, unreadable
from edgekit.quantize.xnnpack_payload import XnnpackCounts, read_payload
from edgekit.types import Inspection

_LABEL = "an ExecuTorch program"
XNNPACK = "XnnpackBackend"
_SEGMENT = 1  # enum DataLocation


class _Tensor(fb.Table):
    scalar_type = fb.Scalar(0, "b")
    sizes = fb.Scalars(2, "i")


class _Bool(fb.Table):
    value = fb.Scalar(0, "B")


class _EValue(fb.Table):
    def tensor(self) -> _Tensor | None:
        _, value = self.union(0, {5: _Tensor})
        return value if isinstance(value, _Tensor) else None

    def true(self) -> bool:
        _, value = self.union(0, {3: _Bool})
        return isinstance(value, _Bool) and bool(value.value)


class _Operator(fb.Table):
    name = fb.Text(0)
    overload = fb.Text(1)


class KernelCall(fb.Table):
    op_index = fb.Scalar(0, "i")
    args = fb.Scalars(1, "i")


class DelegateCall(fb.Table):
    delegate_index = fb.Scalar(0, "i")


class _Instruction(fb.Table):
    def call(self) -> fb.Table | None:
        return self.union(0, {1: KernelCall, 2: DelegateCall})[1]


class _Chain(fb.Table):
    instructions = fb.Many(2, _Instruction)


class _DataReference(fb.Table):
    location = fb.Scalar(0, "b")
    index = fb.Scalar(1, "I")


class _Delegate(fb.Table):
    id = fb.Text(0)
    processed = fb.One(1, _DataReference)


class _Plan(fb.Table):
    name = fb.Text(0)
    values = fb.Many(2, _EValue)
    chains = fb.Many(5, _Chain)
    operators = fb.Many(6, _Operator)
    delegates = fb.Many(7, _Delegate)


class _Buffer(fb.Table):
    storage = fb.Blob(0)


class _DataSegment(fb.Table):
    offset = fb.Scalar(0, "Q")
    size = fb.Scalar(1, "Q")


class _SubsegmentOffsets(fb.Table):
    segment_index = fb.Scalar(0, "I")
    offsets = fb.Scalars(1, "Q")


class _NamedData(fb.Table):
    key = fb.Text(0)
    segment_index = fb.Scalar(1, "I")


class _Program(fb.Table):
    identifier = b"ET12"
    version = fb.Scalar(0, "I")
    execution_plan = fb.Many(1, _Plan)
    constant_buffer = fb.Many(2, _Buffer)
    backend_delegate_data = fb.Many(3, _Buffer)
    segments = fb.Many(4, _DataSegment)
    constant_segment = fb.One(5, _SubsegmentOffsets)
    named_data = fb.Many(7, _NamedData)


def inspect(path: Path) -> Inspection:
    """Count the MACs of all methods, inside and outside of the XNNPACK delegates.

    Raises:
        UsageError: the file is damaged or not an ExecuTorch program.
    """
    try:
        return _count(path, ProgramFile(memoryview(path.read_bytes())))
    except fb.Damaged as error:
        raise unreadable(path, _LABEL, error) from error


class ProgramFile:
    """The program and its segments. Raises Damaged."""

    def __init__(self, data: memoryview) -> None:
        self.program = _Program.root(data)
        base = _segment_base(data)
        self.segments = tuple(
            _slice(data, base + segment.offset, segment.size) for segment in self.program.segments
        )
        self.named = {
            entry.key: fb.item(self.segments, entry.segment_index, "segment")
            for entry in self.program.named_data
        }

    def payload(self, delegate: _Delegate) -> tuple[memoryview, str]:
        """The delegate's data and where it lies."""
        reference = delegate.processed
        if reference is None:
            raise fb.Damaged(f"delegate {delegate.id} has no data")
        if reference.location == _SEGMENT:
            return fb.item(self.segments, reference.index, "segment"), f"segment {reference.index}"
        inline = fb.item(self.program.backend_delegate_data, reference.index, "delegate data")
        return inline.storage, f"inline {reference.index}"

    def constant_bytes(self) -> int:
        """Constants of the kernels outside of the delegates."""
        inline = sum(len(buffer.storage) for buffer in self.program.constant_buffer)
        kept = self.program.constant_segment
        if kept is None or not kept.offsets:
            return inline
        return inline + len(fb.item(self.segments, kept.segment_index, "segment"))


def _segment_base(data: memoryview) -> int:
    # The extended header (exir/_serialize/_program.py): after the 8 bytes of root offset and
    # identifier "eh00", its length, the program's size, where the segments start, their size.
    if bytes(data[8:12]) != b"eh00":
        return 0
    program, base = (int.from_bytes(data[at : at + 8], "little") for at in (16, 24))
    if max(program, base) > len(data):
        raise fb.Damaged(f"byte {max(program, base)} is needed, but there are only {len(data)}")
    return base


def _slice(data: memoryview, start: int, size: int) -> memoryview:
    if start + size > len(data):
        raise fb.Damaged(f"byte {start + size} is needed, but there are only {len(data)}")
    return data[start : start + size]


def _count(path: Path, file: ProgramFile) -> Inspection:
    found = XnnpackCounts()
    outside: Counter[str] = Counter()
    delegates: Counter[str] = Counter()
    if not file.program.execution_plan:
        raise fb.Damaged("it holds no method")
    for plan in file.program.execution_plan:
        for call in calls(plan):
            if isinstance(call, KernelCall):
                operator = fb.item(plan.operators, call.op_index, "operator")
                outside[operator.name] += 1
                _outside_op(plan, operator.name, call, found)
            elif isinstance(call, DelegateCall):
                delegate = fb.item(plan.delegates, call.delegate_index, "delegate")
                delegates[delegate.id] += 1
                if delegate.id == XNNPACK:
                    payload, key = file.payload(delegate)
                    read_payload(payload, key, file.named, found)
                else:
                    found.uncounted.append(f"delegate {delegate.id}")
    notes = [f"delegates: {', '.join(f'{n} {name}' for name, n in delegates.items()) or 'none'}"]
    if len(file.program.execution_plan) > 1:
        names = ", ".join(plan.name for plan in file.program.execution_plan)
        notes.append(f"all methods are counted together: {names}")
    if found.external:
        notes.append(f"{found.external} weights are in another file (.ptd)")
    parts = constant_bytes(file, found)
    notes.append(size_note(path, parts))
    return summarise(
        found.ops,
        outside=outside,
        transposes=found.transposes
        + sum(n for name, n in outside.items() if _operator(name) in _TRANSPOSES),
        quantize_ops=found.converts
        + sum(n for name, n in outside.items() if name.startswith(_QUANTIZE)),
        weight_bytes=sum(parts.values()),
        uncounted=found.uncounted,
        notes=notes,
    )


def constant_bytes(file: ProgramFile, found: XnnpackCounts) -> dict[str, int]:
    """Bytes of constants by where they are used."""
    return {
        "constants in delegates": sum(found.constants.values()),
        "constants outside": file.constant_bytes(),
    }


def calls(plan: _Plan) -> list[fb.Table | None]:
    return [instruction.call() for chain in plan.chains for instruction in chain.instructions]


_TRANSPOSES = ("permute_copy", "transpose_copy", "t_copy", "_to_dim_order_copy", "_clone_dim_order")
_QUANTIZE = ("quantized_decomposed::quantize", "quantized_decomposed::dequantize")
# How many operands precede the one whose length is summed over, by kernel of torch's core set.
_MATRIX_PRODUCTS: Mapping[str, int] = {"mm": 0, "bmm": 0, "linear": 0, "addmm": 1, "baddbmm": 1}


def _operator(name: str) -> str:
    return name.rpartition("::")[2]


def _outside_op(plan: _Plan, name: str, call: KernelCall, found: XnnpackCounts) -> None:
    """Count a kernel call outside of any delegate: always float in the portable kernels."""
    kernel = _operator(name)
    values = [fb.item(plan.values, index, "value") for index in call.args]
    tensors = [value.tensor() for value in values]
    if name == "aten::convolution":
        # input, weight, bias, stride, padding, dilation, transposed, output_padding, groups, out
        x, w, y = (_sizes(tensors, at, name) for at in (0, 1, len(tensors) - 1))
        transposed = len(values) > 6 and values[6].true()
        macs = math.prod(x if transposed else y) * math.prod(w[1:])
        found.ops.append(MacOp(name, macs, "float", delegated=False))
    elif name.startswith("aten::") and kernel in _MATRIX_PRODUCTS:
        x = _sizes(tensors, _MATRIX_PRODUCTS[kernel], name)
        y = _sizes(tensors, len(tensors) - 1, name)
        found.ops.append(MacOp(name, math.prod(y) * x[-1], "float", delegated=False))
    elif multiplies(kernel):
        found.uncounted.append(name)


def _sizes(tensors: list[_Tensor | None], index: int, name: str) -> tuple[int, ...]:
    tensor = fb.item(tuple(tensors), index, f"operand of {name}")
    if tensor is None or not tensor.sizes:
        raise fb.Damaged(f"operand {index} of {name} is not a tensor")
    return tensor.sizes
