"""A mean over height and width as a global average pool, which runtimes have in int8.

Squeeze-excite and classifier heads are often written as ``x.mean((2, 3))``.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from edgekit.quantize.graph import ATEN
from edgekit.quantize.rewrites import edit


def apply(gm: fx.GraphModule) -> int:
    """Rewrite every mean over the last two of four axes. Exact up to float rounding."""
    found = [node for node in gm.graph.nodes if _is_global_mean(node)]
    for node in found:
        pool = edit.insert(gm, node, ATEN.adaptive_avg_pool2d.default, node.args[0], [1, 1])
        shape = tuple(node.meta["val"].shape)
        if len(shape) != 4:
            pool = edit.insert(gm, node, ATEN.reshape.default, pool, shape)
        edit.replace(node, pool)
    return len(found)


def _is_global_mean(node: fx.Node) -> bool:
    if node.target != ATEN.mean.dim or node.kwargs:
        return False
    source, axes, *_ = node.args
    shape: Any = source.meta["val"].shape  # type: ignore[union-attr]
    return len(shape) == 4 and sorted(axis % 4 for axis in axes or ()) == [2, 3]  # type: ignore
