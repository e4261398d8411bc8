"""A value that several operators read, of which some take it in int8 and others in float."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.quantize.cases import case

functional = nn.functional
READERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "clamp, tanh": lambda x: x.clamp(-1, 2) + torch.tanh(x),
    "clamp, elu": lambda x: x.clamp(-1, 2) + functional.elu(x),
    "relu6, sigmoid": lambda x: functional.relu6(x) + torch.sigmoid(x),
    "relu6, pixel_shuffle": lambda x: (
        functional.relu6(x).mean((2, 3)) + functional.pixel_shuffle(x, 2).mean((1, 2, 3))
    ),
    "normalize, itself": lambda x: functional.normalize(x, dim=1) + x,
}


class Shared(nn.Module):
    def __init__(self, readers: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.head, self.readers = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 6), readers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.readers(self.conv(x))
        found: torch.Tensor = self.head(x.mean((2, 3)) if x.dim() == 4 else x)
        return found


@pytest.mark.parametrize("readers", READERS)
def test_executorch_gives_each_reader_what_it_takes(readers: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shared = case(Shared(READERS[readers]).eval(), tmp_path, ["x"])
    artifact = shared.export("executorch", "static_wi8_ai8", tmp_path / "made")
    (found,) = shared.sqnr_db(artifact, "executorch")
    assert found > 35
