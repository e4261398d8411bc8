"""Models that are legal but odd: what exporters do with them, or how they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from edgekit import quality
from tests.quantize.test_exporters import RUNTIMES, case


class Attention(nn.Module):
    """An argument with the name of a Python function, attention, and the input as an output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.qkv = nn.Linear(8, 24)
        self.head = nn.Linear(8, 5)

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.conv(input).flatten(2).transpose(1, 2)[:, :64]
        q, k, v = self.qkv(tokens).reshape(1, 64, 3, 2, 4).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(mixed.transpose(1, 2).flatten(2)), input


def test_onnx_ranges_come_from_all_samples_whatever_the_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = case(Attention().eval(), tmp_path, ["input"], first=0.02)
    (tmp_path / "out").mkdir()
    artifact = given.export("onnx", "static_wi8_ai8", tmp_path / "out")
    mixed, unchanged = given.run(artifact, "onnx", tmp_path)
    assert quality.sqnr_db(given.outputs[0], mixed) > 30
    assert quality.sqnr_db(given.outputs[1], unchanged) > 40


class Clamped(nn.Module):
    """ReLU6 and Hardtanh after an addition, where no layer can take them in."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = self.a(x), self.b(x)
        return self.head(nn.functional.relu6(4 * (a + b))), nn.functional.hardtanh(a - b)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_clamps_after_an_addition(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = case(Clamped().eval(), tmp_path, ["x"])
    (tmp_path / "out").mkdir()
    artifact = given.export(runtime, "static_wi8_ai8", tmp_path / "out")
    for wanted, got in zip(given.outputs, given.run(artifact, runtime, tmp_path), strict=True):
        assert quality.sqnr_db(wanted, got) > 30
