"""TorchScript: the quantized module that the file was traced from, built once more.

Tracing and freezing leave no names in the file. The module comes out the same from the same program
and ranges, and it runs the same kernels of the same engine.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from edgekit.quantize.base import ExportRequest
from edgekit.quantize.converted_reader import ConvertedReader
from edgekit.quantize.prepare import as_module
from edgekit.quantize.to_torchscript import ENGINE, quantize, quantize_dynamic


def open_reader(request: ExportRequest, wanted: Collection[str]) -> ConvertedReader:
    """See :func:`edgekit.quantize.debug.open_reader`; sets PyTorch's engine for good."""
    torch.backends.quantized.engine = ENGINE
    program = torch.export.load(request.program)
    make = quantize_dynamic if request.recipe.scheme == "dynamic" else quantize
    converted = make(as_module(program), request)
    method = "the quantized module before tracing, with the kernels of qnnpack"
    return ConvertedReader(as_module(program), converted, wanted, method)
