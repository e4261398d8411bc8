"""Small networks with what breaks quantizers in them, and samples to feed them with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekit.data import SampleSet, load_samples
from edgekit.types import TensorSpec


class Residual(nn.Module):
    """Depthwise block with batch norm, ReLU6, an uneven pad, a symmetric pad and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)),
            nn.Conv2d(3, 8, 3, stride=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
        )
        self.block = nn.Sequential(
            nn.ZeroPad2d(1),
            nn.Conv2d(8, 8, 3, groups=8, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU6(),
            nn.Conv2d(8, 8, 1, bias=False),
            nn.BatchNorm2d(8),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        logits: torch.Tensor = self.head(self.dropout(torch.flatten(self.pool(x), 1)))
        return logits


class TwoOutputs(nn.Module):
    """Two inputs; outputs of very different size, as detectors have them; an in-place ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a = self.relu(self.a(x))
        b = torch.sigmoid(self.b(y))
        return 320 * a.mean((2, 3)), (a * b).mean((2, 3))


class Computed(nn.Module):
    """Linear layers as Swin v2 has them: of a constant, and with a bias that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(3, 8))
        self.positions = nn.Linear(8, 64)
        self.values = nn.Linear(64, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.avg_pool2d(x, 4).flatten(2)
        bias = torch.cat([self.values.bias[:32], torch.zeros(32)])
        x = nn.functional.linear(x, self.values.weight, bias) + self.positions(self.table)
        scores: torch.Tensor = self.head(nn.functional.gelu(x)).mean(1)
        return scores


def build(net: type[nn.Module], seed: int = 0) -> nn.Module:
    """A net in eval mode whose batch norms have statistics and whose channels differ in size."""
    torch.manual_seed(seed)
    module = net().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.5)  # type: ignore[union-attr]
            part.running_var.uniform_(0.25, 4)  # type: ignore[union-attr]
            part.weight.data.uniform_(0.5, 2)
            part.bias.data.normal_(0, 0.5)
        if isinstance(part, nn.Conv2d):
            part.weight.data *= torch.logspace(-2, 0.5, part.out_channels).view(-1, 1, 1, 1)
    return module.requires_grad_(False)


def image_inputs(n: int, seed: int = 0, size: int = 32) -> np.ndarray:
    """Smooth random images in [-1, 1], shape (n, 1, 3, size, size)."""
    random = np.random.default_rng(seed)
    coarse = torch.from_numpy(random.normal(size=(n, 3, 5, 5)).astype(np.float32))
    fine = nn.functional.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)
    return fine.tanh().numpy()[:, None]


def stored(folder: Path, arrays: Sequence[np.ndarray], names: Sequence[str]) -> SampleSet:
    """A calibration set of these stacked inputs, as the pipeline would read it."""
    file = folder / "samples.npz"
    by_name: dict[str, Any] = dict(zip(names, arrays, strict=True))
    np.savez(file, **by_name)
    specs = tuple(
        TensorSpec(name, tuple(array.shape[1:]), str(array.dtype), "NCHW")
        for name, array in zip(names, arrays, strict=True)
    )
    return load_samples(file, specs, None, base=folder, cache=folder / "cache")
