"""Operators of which a runtime computes parts that reach much further than the result, and
averages, which reach less far than what they are of: INT8 is about as close on every runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.quantize.cases import RUNTIMES, case

functional = nn.functional


def layer_norm(x: torch.Tensor) -> torch.Tensor:
    """Of positions whose variances differ by orders of magnitude."""
    rows = (x * torch.relu(x)).permute(0, 2, 3, 1)
    return functional.layer_norm(rows, rows.shape[-1:]).permute(0, 3, 1, 2)


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    """Of positions whose sizes differ by orders of magnitude."""
    rows = (x * torch.relu(x)).permute(0, 2, 3, 1)
    return functional.rms_norm(rows, rows.shape[-1:], eps=1e-3).permute(0, 3, 1, 2)


FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softplus": lambda x: functional.softplus(3 * x),
    "elu": lambda x: functional.elu(4 * x),
    "selu": lambda x: functional.selu(4 * x),
    "celu": lambda x: functional.celu(4 * x),
    "mish": lambda x: functional.mish(4 * x),
    "rms_norm": rms_norm,
    "group_norm": lambda x: functional.group_norm(x * x, 2),
    "layer_norm": layer_norm,
    "average of what is around zero": lambda x: x - 0.9 * x.roll(1, -1),
}


class Net(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv, self.head, self.function = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 6), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.function(self.conv(x)).mean((2, 3)))
        return found


@pytest.mark.parametrize("function", FUNCTIONS)
def test_int8_is_as_close_on_every_runtime(function: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = case(Net(FUNCTIONS[function]).eval(), tmp_path, ["x"])
    found = {}
    for runtime in RUNTIMES:
        artifact = given.export(runtime, "static_wi8_ai8", tmp_path / runtime)
        (found[runtime],) = given.sqnr_db(artifact, runtime)
    assert min(found.values()) > max(30, max(found.values()) - 7), found
