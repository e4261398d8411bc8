"""What edgekit projects about sentences need: the encoder, and the sets as samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from benchmarks.models.minilm import build, example_inputs, samples

if TYPE_CHECKING:
    import numpy as np

__all__ = ["build", "calib", "choose", "example_inputs", "train"]

_CALIBRATION, _CHOICE, _TRAINED = 16, 32, 400


def calib() -> Iterator[dict[str, np.ndarray]]:
    """Those of the training sentences that are evenly spread over all."""
    yield from _sentences("calib", _TRAINED, range(0, _TRAINED, _TRAINED // _CALIBRATION))


def choose() -> Iterator[dict[str, np.ndarray]]:
    yield from _sentences("choose", _CHOICE, range(_CHOICE))


def train() -> Iterator[dict[str, np.ndarray]]:
    yield from _sentences("calib", _TRAINED, range(_TRAINED))


def _sentences(role: str, count: int, chosen: range) -> Iterator[dict[str, np.ndarray]]:
    stacks = samples(role, count)
    yield from ({name: stack[i] for name, stack in stacks.items()} for i in chosen)
