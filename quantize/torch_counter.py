"""Counts the multiply-accumulates that PyTorch really executes, float and quantized.

A :class:`CountingMode` sees every operator with its tensors just before the kernel runs, whether it
comes from Python or from the TorchScript interpreter.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from edgekit.quantize.macs import Arithmetic, MacOp, attention_macs, multiplies

# Position of the activation; the weight follows it.
_MATRIX_PRODUCTS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "linear": 0, "mv": 0}
_CONVOLUTIONS = ("convolution", "_convolution", "mkldnn_convolution")
_VIEWS = ("t", "transpose", "permute", "view", "reshape", "expand", "detach", "contiguous")
_EIGHT_BIT = (torch.qint8, torch.quint8)


@dataclass
class Counts:
    """What one run executed. ``float_ops`` and ``int8_ops`` produce such tensors and do not change
    the type; a product with int8 weights is one of ``int8_ops`` whatever it produces."""

    ops: list[MacOp] = field(default_factory=list)
    float_ops: Counter[str] = field(default_factory=Counter)
    int8_ops: Counter[str] = field(default_factory=Counter)
    uncounted: list[str] = field(default_factory=list)
    transposes: int = 0
    quantize_ops: int = 0


class CountingMode(TorchDispatchMode):
    """Use as a context manager around one run under ``torch.no_grad()``."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = Counts()
        # Tensors that came out of dequantize. Kept alive, so that an id stays one tensor's.
        self._dequantized: dict[int, torch.Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        space, _, name = func._schema.name.partition("::")
        self._count(space, name, args, result)
        return result

    def _count(self, space: str, name: str, args: Any, result: Any) -> None:
        counts = self.counts
        if "quantize" in name and space == "aten":
            counts.quantize_ops += 1
            if name == "dequantize" and args[0].dtype in _EIGHT_BIT:
                self._remember(result)
            return
        if name in _VIEWS and args and id(args[0]) in self._dequantized:
            self._remember(result)
        counts.transposes += name in ("transpose", "permute")
        op = self._mac_op(space, name, args, result)
        if op is not None:
            counts.ops.append(op)
        elif multiplies(name):
            counts.uncounted.append(f"{space}::{name}")
        integer = op is not None and op.arithmetic in ("static", "dynamic")
        first = result[0] if isinstance(result, tuple) and result else result
        if not isinstance(first, torch.Tensor):
            return
        if integer or first.dtype in _EIGHT_BIT:
            counts.int8_ops[f"{space}::{name}"] += 1
        elif first.is_floating_point():
            counts.float_ops[f"{space}::{name}"] += 1

    def _remember(self, tensor: torch.Tensor) -> None:
        self._dequantized[id(tensor)] = tensor

    def _mac_op(self, space: str, name: str, args: Any, result: Any) -> MacOp | None:
        if space == "quantized":
            return _quantized_op(name, args, result)
        if space != "aten":
            return None
        if name in _CONVOLUTIONS:
            x, w = args[0], args[1]
            transposed = name != "mkldnn_convolution" and bool(args[6])
            macs = (x if transposed else result).numel() * math.prod(w.shape[1:])
        elif name.startswith("_scaled_dot_product"):
            macs = attention_macs(*(operand.shape for operand in args[:3]))
            return MacOp(f"aten::{name}", macs, "float")
        elif name == "mkldnn_rnn_layer":  # input (steps, batch, in), weights of input and state
            x, w, recurrent = args[:3]
            macs = x.numel() // x.shape[-1] * (w.numel() + recurrent.numel())
            return MacOp(f"aten::{name}", macs, "float")
        elif name in _MATRIX_PRODUCTS:
            at = _MATRIX_PRODUCTS[name]
            x, w = args[at], args[at + 1]
            macs = result.numel() * x.shape[-1]
        else:
            return None
        return MacOp(f"aten::{name}", macs, self._arithmetic(x, w))

    def _arithmetic(self, x: torch.Tensor, w: torch.Tensor) -> Arithmetic:
        if id(w) not in self._dequantized:
            return "float"
        return "unfused" if id(x) in self._dequantized else "weight_only"


def _quantized_op(name: str, args: Any, result: Any) -> MacOp | None:
    """An operator of ``quantized::`` with packed weights; None where it does not multiply."""
    label = f"quantized::{name}"
    if name == "matmul":
        return MacOp(label, result.numel() * args[0].shape[-1], "static")
    weight = _unpack(name, args[1]) if len(args) > 1 else None
    if weight is None:
        return None
    if name.startswith("conv"):
        carrier = args[0] if name.startswith("conv_transpose") else result
        macs = carrier.numel() * math.prod(weight.shape[1:])
    else:
        macs = result.numel() * weight.shape[1]
    if weight.dtype not in _EIGHT_BIT:  # fp16 weights, or 4 bit
        return MacOp(label, macs, "float" if weight.is_floating_point() else "other")
    return MacOp(label, macs, "dynamic" if "dynamic" in name else "static")


def _unpack(name: str, packed: Any) -> torch.Tensor | None:
    """The weight in a packed-parameters object, (out, in/groups, ...) or as transposed ones are."""
    for kind in ("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"):
        if name.startswith(kind):
            break
    else:
        kind = next((k for k in ("conv1d", "conv2d", "conv3d", "linear") if name.startswith(k)), "")
    if not kind:
        return None
    unpack = getattr(torch.ops.quantized, f"{kind}_unpack")
    weight = unpack(packed)[0]
    return weight if isinstance(weight, torch.Tensor) else None
