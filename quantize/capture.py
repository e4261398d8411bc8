"""The values that a graph module computes on its way."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree


class Capture(fx.Interpreter):
    """Runs a graph module and keeps the values of some of its nodes as numpy arrays.

    Args:
        gm: the program.
        wanted: names of nodes; those that give no tensor are passed over.
    """

    def __init__(self, gm: fx.GraphModule, wanted: Collection[str]) -> None:
        super().__init__(gm)
        self._wanted = frozenset(wanted)
        self.values: dict[str, np.ndarray[Any, Any]] = {}

    def run_sample(self, sample: Sequence[torch.Tensor]) -> list[np.ndarray[Any, Any]]:
        """The outputs; the values are in :attr:`values` until the next sample."""
        self.values = {}
        with torch.inference_mode():
            results = self.run(*sample)
        leaves = pytree.tree_leaves(results)
        return [leaf.numpy() for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._wanted and isinstance(value, torch.Tensor):
            # A copy: an operator further on may work in place.
            self.values[n.name] = value.clone().numpy()
        return value
