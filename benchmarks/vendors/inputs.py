"""What all vendors' scripts are given: the model, an example input and the calibration samples."""

from __future__ import annotations

import argparse
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

MEAN, STD = 127.0, 128.0


@dataclass(frozen=True)
class Inputs:
    """``samples`` are tuples of arrays, one per input of the model, batch dimension 1 included.

    ``dynamic`` asks for int8 weights with activations quantized at run time, which needs no
    samples. ``float_file`` asks for the float file, too. ``out`` is an empty folder.
    """

    model: torch.nn.Module
    example: tuple[torch.Tensor, ...]
    samples: list[tuple[np.ndarray, ...]]
    out: Path
    dynamic: bool
    float_file: bool

    def tensors(self) -> list[tuple[torch.Tensor, ...]]:
        """The samples as PyTorch takes them."""
        return [tuple(map(torch.from_numpy, sample)) for sample in self.samples]


def read_inputs() -> Inputs:
    """The inputs that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", help="MODEL.py or MODEL.py:FACTORY (default: build)")
    parser.add_argument("samples", type=Path, help="a folder of photos, or an .npz")
    parser.add_argument("out", type=Path)
    parser.add_argument("--dynamic", action="store_true")
    parser.add_argument("--int8-only", action="store_true")
    given = parser.parse_args()
    source, _, factory = given.model.partition(".py:")
    spec = importlib.util.spec_from_file_location("model", f"{source.removesuffix('.py')}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Inputs(
        model=getattr(module, factory or "build")().eval(),
        example=module.example_inputs(),
        samples=_read_samples(given.samples),
        out=given.out,
        dynamic=given.dynamic,
        float_file=not given.int8_only,
    )


def _read_samples(path: Path) -> list[tuple[np.ndarray, ...]]:
    if path.is_dir():
        return [(_read_photo(photo),) for photo in sorted(path.iterdir())]
    with np.load(path) as arrays:
        stacks = [arrays[name] for name in arrays.files if name != "labels"]
    return [tuple(row[None] for row in rows) for rows in zip(*stacks, strict=True)]


def _read_photo(path: Path) -> np.ndarray:
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float32)
    return np.ascontiguousarray(((pixels - MEAN) / STD).transpose(2, 0, 1)[None])
