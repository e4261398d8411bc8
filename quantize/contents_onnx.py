"""ONNX: operators as ONNX Runtime's optimiser leaves them, and the opset that they come from."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx

from edgekit.quantize.contents import Contents, Placement, describe
from edgekit.quantize.inspect_onnx import (
    QUANTIZE_OPS,
    as_written,
    constant_bytes,
    is_int8,
    optimised,
)

#: First ONNX Runtime with each opset and each IR version, from the compatibility table of its
#: documentation; later ones run all earlier opsets.
_FIRST_WITH_OPSET = {
    7: "0.1",
    8: "0.1",
    9: "0.2",
    10: "0.4",
    11: "1.0",
    12: "1.3",
    13: "1.6",
    14: "1.8",
    15: "1.9",
    16: "1.11",
    17: "1.12",
    18: "1.14",
    19: "1.15",
    20: "1.17",
    21: "1.18",
}
_FIRST_WITH_IR = {
    3: "0.1",
    4: "0.4",
    5: "0.4",
    6: "1.0",
    7: "1.6",
    8: "1.10",
    9: "1.15",
    10: "1.18",
}
_OWN_DOMAINS = ("", "ai.onnx")


def contents(path: Path) -> Contents:
    """The graph that ONNX Runtime would run; the file's own where it refuses the file."""
    model = onnx.load(str(path), load_external_data=False)
    try:
        graph = optimised(path, model)
    # ONNX Runtime's exceptions have no common base of their own.
    except Exception:
        graph = as_written(path, model)
    placed: dict[Placement, Counter[str]] = {
        "int8": Counter(),
        "float": Counter(),
        "convert": Counter(),
        "other": Counter(),
    }
    for node in graph.nodes:
        placed[_placement(node, [graph.types.get(name, "") for name in node.output])][
            node.op_type
        ] += 1
    return describe(path, placed, constant_bytes(path, model), _needs(model))


def _placement(node: onnx.NodeProto, kinds: list[str]) -> Placement:
    if node.op_type in QUANTIZE_OPS:
        return "convert"
    if is_int8(node) or any("int8" in kind for kind in kinds):
        return "int8"
    return "float" if any("float" in kind or "double" in kind for kind in kinds) else "other"


def _needs(model: onnx.ModelProto) -> list[str]:
    opset = max((o.version for o in model.opset_import if o.domain in _OWN_DOMAINS), default=0)
    others = sorted({o.domain for o in model.opset_import} - {*_OWN_DOMAINS})
    used = {node.domain for node in model.graph.node}
    known = [_FIRST_WITH_OPSET.get(opset), _FIRST_WITH_IR.get(model.ir_version)]
    versions = [version for version in known if version is not None]
    if len(versions) == len(known):
        newest = max(versions, key=lambda version: [int(part) for part in version.split(".")])
        first = f"ONNX Runtime {newest} or newer"
    else:
        first = "an ONNX Runtime"
    needs = [f"{first} for opset {opset} and IR version {model.ir_version}"]
    needs += [f"operators of the domain {domain}" for domain in others if domain in used]
    return needs
