"""Batch norms that cannot become part of the layer before them, since others read that layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.quantize.cases import RUNTIMES, Case, case


class PreActivated(nn.Module):
    """Residual blocks that normalise first, as those of MaxViT and of the later ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm, self.branch = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.branch(torch.relu(self.norm(x)))
        found: torch.Tensor = self.head(x.mean((2, 3)))
        return found


@pytest.fixture(scope="module")
def pre_activated(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    module = PreActivated().eval()
    with torch.no_grad():
        module.norm.weight.uniform_(2, 4)
        module.norm.bias.uniform_(-1, 1)
    return case(module, tmp_path_factory.mktemp("pre_activated"), ["x"])


@pytest.mark.parametrize("recipe", ["dynamic_wi8_afp32", "static_wi8_ai8"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_other_users_of_a_layer_get_what_it_gives(
    pre_activated: Case, runtime: str, recipe: str, tmp_path: Path
) -> None:
    artifact = pre_activated.export(runtime, recipe, tmp_path)
    (found,) = pre_activated.sqnr_db(artifact, runtime)
    assert found > 27
