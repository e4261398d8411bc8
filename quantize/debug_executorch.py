"""ExecuTorch: the converted program before it is lowered.

The XNNPACK delegate hides what is inside it, and only the program's outputs come out of a ``.pte``.
The PT2E program that it is lowered from has the same grids and the same rounded weights; it
computes in float between them, where XNNPACK computes in integers.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from edgekit.quantize.base import ExportRequest
from edgekit.quantize.converted_reader import ConvertedReader
from edgekit.quantize.prepare import as_module
from edgekit.quantize.to_executorch import quantize


def open_reader(request: ExportRequest, wanted: Collection[str]) -> ConvertedReader:
    """See :func:`edgekit.quantize.debug.open_reader`."""
    program = torch.export.load(request.program)
    converted = quantize(as_module(program), request)
    method = "the converted program before lowering: XNNPACK hides what is inside its delegate"
    return ConvertedReader(as_module(program), converted, wanted, method)
