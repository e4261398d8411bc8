"""Reads the tensors of a network that was quantized as an FX graph, by interpreting that graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree

from edgekit.quantize.node_match import match


class ConvertedReader(fx.Interpreter):
    """A :class:`edgekit.quantize.debug.Reader` for ``converted``, a quantized copy of ``program``.

    A value is read as its users see it: after the last quantize and dequantize on its way.
    """

    rebuilt = True

    def __init__(
        self,
        program: fx.GraphModule,
        converted: fx.GraphModule,
        wanted: Collection[str],
        method: str,
    ) -> None:
        super().__init__(converted)
        self.method = method
        self._names = {
            node: twin.name
            for node, twin in match(program, converted).items()
            if twin.name in wanted
        }
        self._values: dict[str, np.ndarray] = {}

    def read(
        self, sample: tuple[np.ndarray, ...], floats: Mapping[str, np.ndarray]
    ) -> tuple[Mapping[str, np.ndarray], list[np.ndarray]]:
        """See :class:`edgekit.quantize.debug.Reader`."""
        self._values = {}
        with torch.inference_mode():
            results = self.run(*(torch.from_numpy(np.array(array)) for array in sample))
        leaves = [v for v in pytree.tree_leaves(results) if isinstance(v, torch.Tensor)]
        return self._values, [_real(leaf) for leaf in leaves]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        name = self._names.get(n)
        if name is not None and isinstance(value, torch.Tensor) and _is_real(value):
            self._values[name] = _real(value)
        return value


def _is_real(value: torch.Tensor) -> bool:
    """Plain integers are on their way from a quantize to a dequantize."""
    return value.is_quantized or value.is_floating_point()


def _real(value: torch.Tensor) -> np.ndarray:
    real = value.dequantize() if value.is_quantized else value.clone()
    array: np.ndarray = real.contiguous().numpy()
    return array
