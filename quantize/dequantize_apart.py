"""ExecuTorch: readers of one int8 value that take it in differently do not share its float form.

XNNPACK's delegate merges the dequantize node before an operator that it computes in int8 into it.
Where an operator in float has the same node, or one that stays outside of the delegate, both are
given the same: the file does not load, or what leaves the delegate has its axes in another order.
"""

from __future__ import annotations

from executorch.exir.backend.canonical_partitioners.config_partitioner import format_target_name
from executorch.exir.dialects._ops import ops
from torch import fx
from torch.fx.passes.infra.pass_base import PassResult

from edgekit.quantize.executorch_partitioner import Partitioner

_EDGE = ops.edge.quantized_decomposed
_QUANTIZE = _EDGE.quantize_per_tensor.default
_DEQUANTIZE = _EDGE.dequantize_per_tensor.default


def dequantize_apart(gm: fx.GraphModule) -> PassResult:
    """Copy dequantize nodes of the edge program for their readers; a pass of the lowering.

    What is computed in int8 gets one by itself, which costs nothing: it is merged. So do operators
    in float, unless one reads what the other gives (the sigmoid and the product of a SiLU): these
    two are in one delegate for sure.
    """
    delegated = set(Partitioner().target_partitioner_configs)
    changed = False
    for node in list(gm.graph.nodes):
        if node.target != _DEQUANTIZE:
            continue
        shared: dict[fx.Node, fx.Node] = {}
        for number, reader in enumerate(list(node.users)):
            inside = _is_float_inside(reader, delegated)
            found = [shared[source] for source in reader.all_input_nodes if source in shared]
            if inside and found:
                mine = found[0]
            elif number == 0:
                mine = node
            else:
                with gm.graph.inserting_after(node):
                    mine = gm.graph.node_copy(node)
                changed = True
            reader.replace_input_with(node, mine)
            if inside:
                shared[reader] = mine
    gm.recompile()
    return PassResult(gm, changed)


def _is_float_inside(reader: fx.Node, delegated: set[str]) -> bool:
    """Whether the delegate computes ``reader`` in float."""
    if reader.op != "call_function":
        return False
    operands = {operand.target for operand in reader.all_input_nodes}
    quantized = operands == {_DEQUANTIZE} and all(u.target == _QUANTIZE for u in reader.users)
    name: str = reader.target.__name__  # type: ignore[union-attr]
    return not quantized and format_target_name(name) in delegated
