"""Joined tensors keep the range that calibration found for all of them, whichever comes first."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.quantize.cases import RUNTIMES, Case, case


class Joined(nn.Module):
    """A tensor of small positive values before a larger one of both signs; both are read again, and
    the small one is pooled before it is joined once more."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Conv2d(24, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        small = torch.relu(self.first(x)) * 0.05
        large = self.second(small * 40)
        pooled = nn.functional.max_pool2d(small, 3, 1, 1)
        joined: torch.Tensor = self.last(torch.cat([pooled, torch.cat([small, large], 1)], 1))
        return joined


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    return case(Joined().eval(), tmp_path_factory.mktemp("joined"), ["x"])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_first_of_joined_tensors_does_not_clip_the_others(
    joined: Case, runtime: str, tmp_path: Path
) -> None:
    artifact = joined.export(runtime, "static_wi8_ai8", tmp_path)
    (found,) = joined.sqnr_db(artifact, runtime)
    assert found > 30
