"""Local response normalisation, as AlexNet first had it, in INT8 for every runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.quantize.cases import RUNTIMES, Case, case


@pytest.fixture(scope="module")
def normalised(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.LocalResponseNorm(5, alpha=0.5),
        nn.Conv2d(16, 8, 3, padding=1),
    )
    return case(network.eval(), tmp_path_factory.mktemp("normalised"), ["x"])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_it_converts_and_stays_close(normalised: Case, runtime: str, tmp_path: Path) -> None:
    artifact = normalised.export(runtime, "static_wi8_ai8", tmp_path)
    (found,) = normalised.sqnr_db(artifact, runtime)
    assert found > 25
