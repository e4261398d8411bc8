"""How many samples may be worked on at once: memory is bounded by the network, not by the user."""

from __future__ import annotations

import torch
from torch import fx

from edgekit.quantize import graph

#: What the activations or the outputs of all samples that are worked on at once may take.
MAX_BYTES = 1 << 30


def affordable(sample_bytes: int, limit: int) -> int:
    """At most ``limit`` samples of so many bytes each; at least one."""
    return max(1, min(limit, MAX_BYTES // max(sample_bytes, 1)))


def live_bytes(gm: fx.GraphModule) -> int:
    """The most that the tensors of one sample take at any moment of a run, in bytes.

    Values are dropped after their last use; constants do not count.
    """
    dying = graph.last_uses(gm)
    now = most = 0
    for node in gm.graph.nodes:
        if node.op in ("placeholder", "call_function"):
            now += _bytes(node)
            most = max(most, now)
        for dead in dying.get(node, ()):
            now -= _bytes(dead) if dead.op != "get_attr" else 0
    return most


def output_bytes(gm: fx.GraphModule) -> int:
    """What the outputs of one sample take, in bytes."""
    return sum(_bytes(node) for node in gm.graph.output_node().all_input_nodes)


def input_bytes(gm: fx.GraphModule) -> int:
    """What the inputs of one sample take, in bytes."""
    return sum(_bytes(node) for node in gm.graph.nodes if node.op == "placeholder")


def _bytes(node: fx.Node) -> int:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, torch.Tensor))
