"""What TorchScript makes of each operator: tracing takes all, FX quantizes what its table has.

The program is rebuilt as modules, as the exporter does it; PyTorch's backend configuration says
which of them have an int8 kernel. Everything else stays an ATen call in float.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

# The backend configuration uses `utils` without importing it.
from torch.ao.quantization.backend_config import get_native_backend_config, utils  # noqa: F401

from edgekit.errors import ExportFailed
from edgekit.quantize import graph
from edgekit.quantize.check import LEFT_FLOAT, Verdict
from edgekit.quantize.decompositions import decompose
from edgekit.quantize.origins import calls, op_name
from edgekit.quantize.prepare import as_module
from edgekit.quantize.rebuild import to_modules


def check(program: torch.export.ExportedProgram) -> Mapping[str, Verdict]:
    """See :class:`edgekit.quantize.check.Checker`."""
    rewritten = decompose(program, "torchscript")
    gm = as_module(program)
    known = _patterns()
    try:
        rebuilt = {node.name: node for node in to_modules(gm).graph.nodes}
    except ExportFailed as error:
        return rewritten.verdicts(
            {
                node.name: Verdict("fails", error.message, remedy=error.remedy)
                if f"{node.name!r}" in error.message
                else Verdict("converts")
                for node in calls(gm)
            }
        )
    return rewritten.verdicts(
        {node.name: _verdict(node, rebuilt.get(node.name), known) for node in calls(gm)}
    )


def _patterns() -> set[Any]:
    """Module types and functions that FX has a static int8 form of."""
    found: set[Any] = set()
    for config in get_native_backend_config().configs:
        if any(d.input_dtype == torch.quint8 and not d.is_dynamic for d in config.dtype_configs):
            found.add(config.pattern)
    return found


def _verdict(node: torch.fx.Node, made: torch.fx.Node | None, known: set[Any]) -> Verdict:
    if made is None:
        return Verdict("converts", "computed once, while converting")
    what: Any = made.target
    if made.op == "call_module":
        root = made.graph.owning_module
        assert root is not None
        what = type(root.get_submodule(str(made.target)))
    if node.target in graph.AVERAGES:
        return Verdict("float", LEFT_FLOAT)
    if what in known:
        return Verdict("int8")
    return Verdict("float", f"FX has no quantized {op_name(node).removeprefix('aten.')}")
