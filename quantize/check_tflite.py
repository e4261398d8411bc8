"""What TFLite makes of each operator: litert-torch's decompositions and lowerings, and the policy.

Which operators have a lowering is what litert-torch's registry says after its own decompositions.
Which TFLite operators the compiler makes of them is in no table, so one call of each kind is
converted by itself; AI Edge Quantizer's policy then says which of those may be int8.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import litert_torch
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from ai_edge_quantizer import default_policy, qtyping
from ai_edge_quantizer.utils import tfl_flatbuffer_utils
from litert_torch import fx_infra
from litert_torch.backend import lowerings
from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.check import LEFT_FLOAT, Verdict, worst
from edgekit.quantize.decompositions import decompose
from edgekit.quantize.divisors import quotients
from edgekit.quantize.origins import calls, mark, marked, op_name
from edgekit.quantize.parts import example, kind_of_call, part
from edgekit.quantize.prepare import as_module
from edgekit.quantize.taken_apart import taken_apart

_REMEDY = "Write it with other operators in forward(), or leave tflite out of the runtimes."
#: TFLite operators that hand on what they are given, int8 or not.
_MOVES = {"PAD", "RESHAPE", "SLICE", "SQUEEZE", "STRIDED_SLICE", "TRANSPOSE"}


def check(program: torch.export.ExportedProgram) -> Mapping[str, Verdict]:
    """See :class:`edgekit.quantize.check.Checker`."""
    rewritten = decompose(program, "tflite")
    gm = as_module(program)
    mark(program)
    missing = _without_lowering(program)
    probed: dict[Any, Verdict] = {}
    found = {}
    for node in calls(gm):
        if node.name in missing:
            found[node.name] = Verdict(
                "fails", f"litert-torch has no lowering of {missing[node.name]}", remedy=_REMEDY
            )
            continue
        if node.target in graph.SAME_VALUES:
            # Not worth the second that a conversion takes.
            found[node.name] = Verdict("converts")
            continue
        kind = kind_of_call(node)
        if kind not in probed:
            probed[kind] = _probe(gm, node)
        found[node.name] = probed[kind]
    for name in quotients(gm) | taken_apart(gm, "tflite"):
        if name in found and found[name].fate == "int8":
            found[name] = Verdict("float", LEFT_FLOAT)
    return rewritten.verdicts(found)


def _without_lowering(program: torch.export.ExportedProgram) -> dict[str, str]:
    """Prepared nodes that leave an operator without a lowering, with its name."""
    for table in (fx_infra.decomp.pre_convert_decomp(), fx_infra.decomp.pre_lower_decomp()):
        program = fx_infra.safe_run_decompositions(program, table, can_skip=False)
    return {
        name: op_name(node)
        for node in calls(program.graph_module)
        for name in [marked(node)]
        if name is not None and lowerings.lookup(node.target) is None
    }


def _probe(gm: fx.GraphModule, node: fx.Node) -> Verdict:
    """Convert one call by itself and look at the TFLite operators that come out."""
    alone = part(gm, [node])
    inputs = example(alone)
    if not inputs:
        return Verdict("converts", "computed once, while converting")
    try:
        model = litert_torch.convert(alone, inputs).model_content()
    # Converters raise whatever they like.
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return Verdict("fails", f"{type(error).__name__}: {first}"[:300], remedy=_REMEDY)
    interpreter = Interpreter(
        model_content=model,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    ops = [str(op["op_name"]) for op in interpreter._get_ops_details()]
    return worst([_policy(op) for op in ops] or [Verdict("converts")])


def _policy(op: str) -> Verdict:
    if op in _MOVES:
        return Verdict("converts")
    configs = default_policy.DEFAULT_CONFIG_CHECK_POLICY.get(_names().get(op), [])
    if any(
        config.activation_tensor_config is not None
        and config.activation_tensor_config.num_bits == 8
        for config in configs
    ):
        return Verdict("int8")
    return Verdict("float", f"AI Edge Quantizer does not quantize {op}")


def _names() -> dict[str, Any]:
    """The quantizer's names of operators by the format's own."""
    codes = {
        code: name for name, code in vars(qtyping.BuiltinOperator).items() if isinstance(code, int)
    }
    return {codes[c]: n for n, c in tfl_flatbuffer_utils.TFL_OP_NAME_TO_CODE.items() if c in codes}
