"""Tiny real models, made once per session with the vendors' own tools."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.faults import bundles
from benchmarks.faults.bundles import Release
from edgekit.bundle import Bundle, write_bundle, write_raw_tensor
from edgekit.targets.device import Device, connect
from edgekit.targets.measure import HostMeasurer
from edgekit.types import (
    Artifact,
    EvalResult,
    Evaluation,
    Golden,
    Inspection,
    ModelSpec,
    OutputQuality,
    Recipe,
    Target,
    TensorSpec,
)

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


INPUTS = (TensorSpec("image", IMAGE, "float32", "NCHW"), TensorSpec("gain", GAIN, "float32"))
RESULTS = tuple(TensorSpec(f"y{k}", (1, 4), "float32") for k in range(OUTPUTS))
N = 16


@pytest.fixture(scope="session")
def bundle(
    models: Mapping[str, Path],
    float_model: Any,
    cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    """A real bundle of the tiny model: four float artifacts, 16 golden samples."""
    return make_bundle(models, float_model, cache, tmp_path_factory.mktemp("bundle"))


def make_bundle(
    models: Mapping[str, Path],
    float_model: Any,
    cache: Path,
    folder: Path,
    *,
    spoil: Mapping[str, float] | None = None,
    version: str = "1",
) -> Bundle:
    """``spoil``: noise to add to the stored host outputs of a runtime's artifact, as a lie."""
    rng = np.random.default_rng(1)
    stacked = [rng.normal(size=(N, *spec.shape)).astype(np.float32) for spec in INPUTS]
    with torch.inference_mode():
        rows = [float_model(*(torch.from_numpy(a[i]) for a in stacked)) for i in range(N)]
    reference = [np.stack([row[k].numpy() for row in rows]) for k in range(OUTPUTS)]
    parts = folder / "parts"
    parts.mkdir()
    measurer = HostMeasurer(cache=cache)
    artifacts, own, files, results = [], {}, {}, []
    for runtime, path in models.items():
        id = path.stem
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        place = f"artifacts/{path.name}"
        recipe = Recipe("fp32", "fp32", ("fold_bn",))
        artifacts.append(
            Artifact(id, runtime, "fp32", place, digest, path.stat().st_size, INPUTS, RESULTS,
                     recipe, "", {"torch": "2.14.1"}, Inspection(0.0, None)),
        )  # fmt: skip
        files[place] = path
        outputs = measurer.outputs(path, runtime, stacked, RESULTS, workdir=folder)
        noise = (spoil or {}).get(runtime, 0.0)
        own[id] = tuple(
            write_raw_tensor(
                parts, f"golden/{id}/y{k}.bin", f"y{k}",
                (np.asarray(a) + noise * rng.normal(size=a.shape)).astype(np.float32),
            )
            for k, a in enumerate(outputs)
        )  # fmt: skip
        results.append(
            EvalResult(id, 0.0, 1.0, tuple(OutputQuality(s.name, 90.0, 0.01) for s in RESULTS))
        )
    golden = Golden(
        n=N,
        set_id=hashlib.sha256(b"set").hexdigest(),
        metric="agreement",
        inputs=tuple(
            write_raw_tensor(parts, f"golden/inputs/{s.name}.bin", s.name, a)
            for s, a in zip(INPUTS, stacked, strict=True)
        ),
        outputs=tuple(
            write_raw_tensor(parts, f"golden/outputs/{s.name}.bin", s.name, a)
            for s, a in zip(RESULTS, reference, strict=True)
        ),
        artifact_outputs=own,
    )
    files |= {f.relative_to(parts).as_posix(): f for f in parts.glob("golden/**/*.bin")}
    weights = hashlib.sha256(version.encode()).hexdigest()
    return write_bundle(
        folder / "bundle",
        model=ModelSpec("tiny", "model.py:build", INPUTS, RESULTS, None, weights),
        artifacts=artifacts,
        golden=golden,
        evals=[Evaluation("choose", golden.set_id, N, "agreement", None, tuple(results))],
        files=files,
    )


@pytest.fixture(scope="session")
def releases(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> list[Release]:
    """Three small bundles of one model, of one ExecuTorch artifact each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        return bundles.make(tmp_path_factory.mktemp("releases"))


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes to the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def local_target(root: Path, **options: str) -> Target:
    return Target("here", "local", "", str(root), "local", options)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    """This machine as a device, with a root of its own."""
    with connect(local_target(tmp_path / "root")) as connected:
        yield connected
