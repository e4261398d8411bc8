"""Divisions by what is computed: norms that are nearly zero somewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import quality
from edgekit.quantize.divisors import quotients
from tests.quantize.cases import RUNTIMES, case_of
from tests.quantize.nets import image_inputs


class Normed(nn.Module):
    """Features divided by their root mean square over channels, and a layer that takes them in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Conv2d(8, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.first(x)
        size = torch.sqrt((features * features).mean(1, keepdim=True) + 1e-5)
        given: torch.Tensor = self.last(features / size)
        return given


def images(n: int, seed: int) -> np.ndarray:
    """Images that are black in one half but for a little noise."""
    found = image_inputs(n, seed)
    found[..., :16] *= 1e-3
    return found


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_small_divisors_are_no_zeros(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = case_of(Normed().eval(), tmp_path, ["x"], [images(8, 1)], [images(4, 2)])
    artifact = given.export(runtime, "static_wi8_ai8", tmp_path / "out")
    (result,) = given.run(artifact, runtime, tmp_path)
    assert np.isfinite(result).all()
    bright = np.s_[..., 18:]
    assert quality.sqnr_db(given.outputs[0][bright], result[bright]) > 15


def test_only_what_leads_to_a_computed_divisor() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.register_buffer("scale", torch.full((3, 1, 1), 2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return torch.relu(y / self.scale) / torch.exp(y)

    gm = torch.export.export(Net(), (torch.zeros(1, 3, 4, 4),)).module()
    assert isinstance(gm, torch.fx.GraphModule)
    assert quotients(gm) == {"div_1", "exp"}
