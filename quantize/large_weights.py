"""Weights of more than 32 MiB for TFLite, such as Wide ResNet's 3x3 convolutions of 1024 channels.

AI Edge Quantizer makes a matrix of such a tensor, but leaves the scales in the tensor's own rank,
and fails on what was no matrix before. Given a few output channels at a time it never comes there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from ai_edge_quantizer.algorithms.uniform_quantize import uniform_quantize_tensor as tensors

_LIMIT = 32 * 1024 * 1024


@contextmanager
def large_weights() -> Iterator[None]:
    """Large weights can be quantized inside; not for threads."""
    original = tensors.uniform_quantize

    def by_channels(data: np.ndarray, params: Any, is_blockwise_quant: bool = False) -> np.ndarray:
        if data.ndim <= 2 or data.nbytes <= _LIMIT or is_blockwise_quant:
            whole: np.ndarray = original(data, params, is_blockwise_quant)
            return whole
        params = tensors.fix_quantization_params_rank(data, params)
        count = max(1, _LIMIT // data[0].nbytes)
        parts = []
        for start in range(0, len(data), count):
            some = slice(start, start + count)
            scale, zero_point = (
                values[some] if len(values) > 1 else values
                for values in (params.scale, params.zero_point)
            )
            parts.append(original(data[some], replace(params, scale=scale, zero_point=zero_point)))
        return np.concatenate(parts)

    tensors.uniform_quantize = by_channels
    try:
        yield
    finally:
        tensors.uniform_quantize = original
