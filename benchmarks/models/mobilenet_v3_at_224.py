"""The digits' networks at ImageNet's size: their speed there is what compares with other networks.

They see nothing useful at 224x224, so only their latency and their SQNR mean anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.models import digits

if TYPE_CHECKING:
    import torch

small, large = digits.small, digits.large


def example_inputs() -> tuple[torch.Tensor, ...]:
    import torch

    return (torch.zeros(1, 3, 224, 224),)
