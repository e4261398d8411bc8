"""Tiny real models, made once per session with the vendors' own tools."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

IMAGE = (1, 3, 8, 8)
GAIN = (1, 2)
OUTPUTS = 12  # more than ten: output_10 sorts before output_2 by letters


class TwoInputs(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A small convolution with two inputs and twelve outputs, all different."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, image: Any, gain: Any) -> Any:
        pooled = torch.relu(self.conv(image)).mean((2, 3))
        return tuple(pooled * (i + 1) + gain.sum() * i for i in range(OUTPUTS))


def example() -> tuple[Any, Any]:
    return torch.ones(*IMAGE), torch.ones(*GAIN)


@pytest.fixture(scope="session")
def float_model() -> Any:
    torch.manual_seed(0)
    return TwoInputs().eval()


@pytest.fixture(scope="session")
def samples() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Five samples of both inputs: shapes (5, 1, 3, 8, 8) and (5, 1, 2), float32."""
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(5, *IMAGE)).astype(np.float32),
        rng.normal(size=(5, *GAIN)).astype(np.float32),
    )


@pytest.fixture(scope="session")
def float_outputs(
    float_model: Any, samples: tuple[np.ndarray[Any, Any], ...]
) -> list[np.ndarray[Any, Any]]:
    """The float model's outputs, twelve arrays of shape (5, 1, 4)."""
    with torch.inference_mode():
        rows = [float_model(*(torch.from_numpy(array[i]) for array in samples)) for i in range(5)]
    return [np.stack([row[k].numpy() for row in rows]) for k in range(OUTPUTS)]


def _executorch(model: Any, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(model, example(), strict=False)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def _onnx(model: Any, path: Path) -> None:
    torch.onnx.export(model, example(), str(path), dynamo=True, external_data=False, verbose=False)


def _tflite(model: Any, path: Path) -> None:
    import litert_torch

    litert_torch.convert(model, example()).export(str(path))


def _torchscript(model: Any, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, example()).save(str(path))


_EXPORTS = {
    "executorch": (_executorch, "pte"),
    "tflite": (_tflite, "tflite"),
    "onnx": (_onnx, "onnx"),
    "torchscript": (_torchscript, "pt"),
}


@pytest.fixture(scope="session")
def models(float_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The same model as a file of each runtime."""
    folder = tmp_path_factory.mktemp("models")
    paths = {}
    for runtime, (export, extension) in _EXPORTS.items():
        paths[runtime] = folder / f"tiny-{runtime}-fp32.{extension}"
        export(float_model, paths[runtime])
    return paths


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of this session, so that runtimes are really built and assembled."""
    return tmp_path_factory.mktemp("cache")
