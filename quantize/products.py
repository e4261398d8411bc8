"""Linear layers, however they are written, in the one form that is quantized and repaired.

GPT-2 calls ``addmm`` and CLIP multiplies by a parameter; to a runtime both are products of
activations, of which it quantizes none or both, and to the rungs they are no layers.
"""

from __future__ import annotations

from torch import fx

from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN

#: Products, the second or third operand of which may be a constant matrix.
_PRODUCTS = (ATEN.mm.default, ATEN.matmul.default, ATEN.addmm.default)


def products_as_linear(gm: fx.GraphModule) -> int:
    """A product with a constant matrix becomes a linear layer."""
    return sum(_to_linear(gm, node) for node in list(gm.graph.nodes) if node.target in _PRODUCTS)


def _to_linear(gm: fx.GraphModule, node: fx.Node) -> bool:
    added = node.target == ATEN.addmm.default
    operands = node.args if added else (None, *node.args)
    if len(operands) != 3 or node.kwargs:
        # With factors, beta and alpha, of the bias and the product.
        return False
    bias, first, second = operands
    matrix, shift = graph.constant(gm, second), graph.constant(gm, bias)
    if matrix is None or matrix.dim() != 2 or not matrix.is_floating_point():
        return False
    if added and (shift is None or shift.shape != matrix.shape[1:]):
        return False
    weight = graph.add_constant(gm, f"{node.name}_weight", matrix.t().contiguous(), node)
    node.target, node.args = ATEN.linear.default, (first, weight, bias)
    return True


def vectors_as_rows(gm: fx.GraphModule) -> int:
    """A linear layer of one vector gets a row of one, as TorchScript's int8 kernel asks for."""
    changed = 0
    for layer in list(graph.layers(gm)):
        node = layer.node
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if node.target != ATEN.linear.default or source.meta["val"].dim() != 1:
            continue
        with gm.graph.inserting_before(node):
            row = gm.graph.call_function(ATEN.unsqueeze.default, (source, 0))
        with gm.graph.inserting_after(node):
            vector = gm.graph.call_function(ATEN.squeeze.dim, (node, 0))
        row.meta["val"] = source.meta["val"].unsqueeze(0)
        vector.meta["val"] = node.meta["val"]
        node.meta["val"] = node.meta["val"].unsqueeze(0)
        node.replace_all_uses_with(vector)
        vector.update_arg(0, node)
        node.update_arg(0, row)
        changed += 1
    return changed
