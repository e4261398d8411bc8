"""What edgekit projects about the digits need: the networks, and the sets as samples.

Of the labels nothing is used: a rung has to bring the outputs closer to the float network's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmarks.models.digits import example_inputs, large, samples, small

if TYPE_CHECKING:
    import numpy as np

__all__ = ["calib", "choose", "example_inputs", "large", "small", "spoiled", "train"]

#: Of the spoiled calibration samples, those that are too bright, and how much.
_BRIGHT, _GAIN = (3, 10), 4


def calib() -> Iterator[np.ndarray]:
    yield from _images("calib")


def spoiled() -> Iterator[np.ndarray]:
    """The calibration samples, some of which have a gain that no later sample will have."""
    for index, image in enumerate(_images("calib")):
        yield _GAIN * image if index in _BRIGHT else image


def choose() -> Iterator[np.ndarray]:
    yield from _images("choose")


def train() -> Iterator[np.ndarray]:
    """All digits that train but those that calibrate."""
    yield from _images("train", len(samples("calib")[0]))


def _images(role: str, start: int = 0) -> Iterator[np.ndarray]:
    images, _ = samples(role)
    yield from (image[None] for image in images[start:])
