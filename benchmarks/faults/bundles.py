"""Three small bundles of one model with different weights; their artifacts really run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle import Bundle, write_bundle, write_raw_tensor
from edgekit.targets import deploy, runtimes
from edgekit.targets.abi import Abi, host_abi
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
    TensorSpec,
)

MODEL, ARTIFACT = "cut", "cut-executorch-fp32"
N = 16
WIDTH = 1024  # one dense layer of 4 MB: an upload that takes long enough to be cut
X, Y = TensorSpec("x", (1, WIDTH), "float32"), TensorSpec("y", (1, WIDTH), "float32")


@dataclass(frozen=True)
class Release:
    """A bundle and the files that deploying it brings to a device, by hash, with their sizes."""

    path: Path
    id: str
    blobs: dict[str, tuple[Path, int]]


def make(folder: Path) -> list[Release]:
    """Three bundles in ``folder``, for devices of this machine's kind."""
    made = [_bundle(folder / name, seed) for seed, name in enumerate("abc")]
    return [release(bundle, host_abi()) for bundle in made]


def _bundle(folder: Path, seed: int) -> Bundle:
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU()).eval()
    example = (torch.zeros(X.shape),)
    program = torch.export.export(model, example, strict=False)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    file = folder / f"{ARTIFACT}.pte"
    file.write_bytes(lowered.to_executorch().buffer)
    inputs = np.random.default_rng(seed).normal(size=(N, *X.shape)).astype(np.float32)
    with torch.inference_mode():
        wanted = np.stack([model(torch.from_numpy(sample)).numpy() for sample in inputs])
    (given,) = HostMeasurer().outputs(file, "executorch", [inputs], (Y,), workdir=folder)
    return _written(folder, file, inputs, wanted, np.asarray(given), f"weights {seed}")


def _written(
    folder: Path, file: Path, inputs: Any, wanted: Any, given: Any, weights: str
) -> Bundle:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    place = f"artifacts/{file.name}"
    artifact = Artifact(
        ARTIFACT, "executorch", "fp32", place, digest, file.stat().st_size, (X,), (Y,),
        Recipe("fp32", "fp32", ()), "", {}, Inspection(0.0, 1.0),
    )  # fmt: skip
    set_id = hashlib.sha256(b"noise").hexdigest()
    golden = Golden(
        n=N,
        set_id=set_id,
        metric="agreement",
        inputs=(write_raw_tensor(folder, "golden/inputs/x.bin", "x", inputs),),
        outputs=(write_raw_tensor(folder, "golden/outputs/y.bin", "y", wanted),),
        artifact_outputs={
            ARTIFACT: (write_raw_tensor(folder, f"golden/{ARTIFACT}/y.bin", "y", given),)
        },
    )
    files = {path.relative_to(folder).as_posix(): path for path in folder.glob("golden/**/*.bin")}
    result = EvalResult(ARTIFACT, 0.0, 1.0, (OutputQuality("y", 90.0, 0.01),))
    sha256 = hashlib.sha256(weights.encode()).hexdigest()
    return write_bundle(
        folder / "bundle",
        model=ModelSpec(MODEL, "benchmarks.faults", (X,), (Y,), None, sha256),
        artifacts=[artifact],
        golden=golden,
        evals=[Evaluation("choose", set_id, N, "agreement", None, (result,))],
        files={place: file, **files},
    )


def release(bundle: Bundle, abi: Abi) -> Release:
    """What deploying a bundle to a device of some kind brings there."""
    artifact = bundle.artifact(ARTIFACT)
    runtime = runtimes.resolve("executorch", abi)
    blobs = [*deploy.release_blobs(bundle, artifact).values(), *deploy.runtime_blobs(runtime)]
    return Release(
        bundle.path, bundle.digest[:16], {b.sha256: (b.path, b.size_bytes) for b in blobs}
    )
