"""Hard sigmoid behind a layer (squeeze-excite) as a clamp that runtimes fuse into that layer.

``hardsigmoid(W x + b) = relu6(W x + (b + 3)) / 6``: the 3 goes into the bias, the 6 into the
weights of the consumers, which is the projection behind the product.
"""

from __future__ import annotations

import torch
from torch import fx

from edgekit.quantize.graph import ATEN
from edgekit.quantize.rewrites import edit, factors

_GAIN = 6.0


def apply(gm: fx.GraphModule) -> int:
    """Rewrite every hard sigmoid that is the only user of a layer and whose factor can travel.

    Exact up to float rounding.
    """
    found = [
        node
        for node in gm.graph.nodes
        if node.target == ATEN.hardsigmoid.default
        and edit.layer_weight(gm, node.args[0]) is not None
        and len(node.args[0].users) == 1
    ]
    plan = factors.plan(gm, dict.fromkeys(found, _GAIN))
    factors.take_in(gm, plan.layers)
    for node in plan.sources:
        layer = node.args[0]
        assert isinstance(layer, fx.Node)
        weight, bias = edit.layer_weight(gm, layer), edit.layer_bias(gm, layer)
        assert weight is not None
        if bias is None:
            bias = torch.zeros(edit.output_channels(weight, layer))
        edit.set_bias(gm, layer, bias.double() + 3)
        edit.replace(node, edit.insert(gm, node, ATEN.hardtanh.default, layer, 0.0, 6.0))
    return len(plan.sources)
