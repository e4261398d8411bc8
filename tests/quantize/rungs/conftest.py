"""The network that rungs are tried on, and its samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekit.data import SampleSet, load_samples
from edgekit.quantize.prepare import export_program, prepare
from edgekit.types import TensorSpec
from tests.quantize.nets import Residual, build, image_inputs


@pytest.fixture(scope="module")
def exported() -> torch.export.ExportedProgram:
    inputs = (torch.zeros(1, 3, 32, 32),)
    return prepare(export_program(build(Residual), inputs), inputs)[0]


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SampleSet]:
    folder = tmp_path_factory.mktemp("sets")
    specs = (TensorSpec("x", (1, 3, 32, 32), "float32"),)
    found = {}
    for seed, role in enumerate(("calibration", "choose")):
        np.savez(folder / f"{role}.npz", x=image_inputs(24, seed))
        found[role] = load_samples(
            str(folder / f"{role}.npz"), specs, None, base=folder, cache=folder / "cache"
        )
    return found
