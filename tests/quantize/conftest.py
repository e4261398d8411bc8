"""What tests of this folder must not leave behind for others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def same_engine() -> Iterator[None]:
    """The quantized engine is a global of PyTorch's, and debugging sets it for its process."""
    before = torch.backends.quantized.engine
    yield
    torch.backends.quantized.engine = before
