"""What all vendors' scripts are given: the model, an example input and the calibration photos."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

MEAN, STD = 127.0, 128.0


@dataclass(frozen=True)
class Inputs:
    """``photos`` are float32 arrays of shape (1, 3, height, width); ``out`` is an empty folder."""

    model: torch.nn.Module
    example: tuple[torch.Tensor, ...]
    photos: list[np.ndarray]
    out: Path


def read_inputs() -> Inputs:
    """The inputs that the command line names: MODEL.py PHOTOS OUT."""
    source, folder, out = map(Path, sys.argv[1:])
    spec = importlib.util.spec_from_file_location("model", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Inputs(
        model=module.build().eval(),
        example=module.example_inputs(),
        photos=[_read(path) for path in sorted(folder.iterdir())],
        out=out,
    )


def _read(path: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float32)
    return np.ascontiguousarray(((pixels - MEAN) / STD).transpose(2, 0, 1)[None])
