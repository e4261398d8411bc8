"""What ONNX Runtime makes of each operator: PyTorch's ONNX registry, and onnxruntime's quantizer.

Operators that the registry does not have are taken apart by PyTorch's own decompositions, as the
exporter does it; what is left without an entry fails. The rest is translated, without weights being
written, to see which ONNX operators come out and whether onnxruntime quantizes those.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from torch import fx
from torch.onnx._internal.exporter import _core, _dispatching, _fx_passes, _registration

from edgekit.quantize.check import LEFT_FLOAT, Verdict, worst
from edgekit.quantize.decompositions import decompose
from edgekit.quantize.origins import calls, mark, marked, op_name, scope_of
from edgekit.quantize.prepare import as_module
from edgekit.quantize.taken_apart import taken_apart

#: ONNX operators that onnxruntime quantizes although they only move values.
_MOVES = {"Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
#: Those that make no float values.
_PLAIN = {"Cast", "Constant", "ConstantOfShape", "Range", "Shape"}


def check(program: torch.export.ExportedProgram) -> Mapping[str, Verdict]:
    """See :class:`edgekit.quantize.check.Checker`."""
    rewritten = decompose(program, "onnx")
    mark(program)
    registry = _registration.ONNXRegistry.from_torchlib()
    decomposed = _fx_passes.decompose_with_registry(program, registry)
    parts: dict[str, list[Verdict]] = {}
    for node in calls(decomposed.graph_module):
        name = marked(node)
        if name is not None:
            parts.setdefault(name, []).append(_dispatched(node, registry))
    if all(verdict.fate != "fails" for found in parts.values() for verdict in found):
        parts = _translated(program, registry)
    gm = as_module(program)
    found = {
        node.name: worst(parts[node.name]) if node.name in parts else Verdict("converts")
        for node in calls(gm)
    }
    for name in taken_apart(gm, "onnx"):
        if found[name].fate == "int8":
            found[name] = Verdict("float", LEFT_FLOAT)
    return rewritten.verdicts(found)


def _dispatched(node: fx.Node, registry: _registration.ONNXRegistry) -> Verdict:
    function, reason = _dispatching.dispatch(node, registry)
    if function is not None:
        return Verdict("converts")
    return Verdict(
        "fails",
        f"the ONNX exporter has no {op_name(node)} ({reason})",
        remedy="Write it with other operators in forward(), or leave onnx out of the runtimes.",
    )


def _translated(
    program: torch.export.ExportedProgram, registry: _registration.ONNXRegistry
) -> dict[str, list[Verdict]]:
    """Verdicts by prepared node on the ONNX operators that come of it."""
    model: Any = _core.exported_program_to_ir(program, registry=registry)
    parts: dict[str, list[Verdict]] = {}
    for node in model.graph:
        name = scope_of(node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
        if name is not None:
            parts.setdefault(name, []).extend(map(_quantized, _op_types(node, model)))
    return parts


def _op_types(node: Any, model: Any) -> Iterator[str]:
    """The ONNX operators of a node; many are functions of others, which runtimes look into."""
    function = model.functions.get(node.op_identifier())
    if function is None:
        yield node.op_type
    else:
        for inner in function:
            yield from _op_types(inner, model)


def _quantized(op_type: str) -> Verdict:
    if op_type in _MOVES or op_type in _PLAIN:
        return Verdict("converts")
    if op_type in QDQRegistry or op_type in QLinearOpsRegistry:
        return Verdict("int8")
    return Verdict("float", f"onnxruntime does not quantize {op_type}")
