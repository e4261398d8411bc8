"""Operators that a converter takes apart into what an int8 grid does not hold.

Between the parts of an ELU, a softplus or a norm there are exponentials and variances. Their ranges
are so much wider than that of the result that int8 has nothing left of it.
"""

from __future__ import annotations

from torch import fx

from edgekit.quantize.graph import ATEN

#: By runtime. The other converters keep these whole, or leave them in float by themselves.
_TARGETS = {
    "onnx": (ATEN.rms_norm.default,),
    "tflite": (
        ATEN.elu.default,
        ATEN.celu.default,
        ATEN.selu.default,
        ATEN.softplus.default,
        ATEN.mish.default,
        ATEN.layer_norm.default,
        ATEN.group_norm.default,
        ATEN.instance_norm.default,
        ATEN.rms_norm.default,
    ),
}


def taken_apart(gm: fx.GraphModule, runtime: str) -> set[str]:
    """Names of the nodes that stay float in static INT8 for that."""
    return {node.name for node in gm.graph.nodes if node.target in _TARGETS[runtime]}
