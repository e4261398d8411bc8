"""Convolutions with more than 32 MiB of weights become INT8 for TFLite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.quantize.cases import Case, case


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 1024, 8, stride=8), nn.ReLU(), nn.Conv2d(1024, 1024, 3, padding=1)
    )
    return case(network.eval(), tmp_path_factory.mktemp("large"), ["x"])


@pytest.mark.parametrize("recipe", ["static_wi8_ai8", "weight_only_wi8_afp32"])
def test_large_weights_are_quantized(large: Case, recipe: str, tmp_path: Path) -> None:
    artifact = large.export("tflite", recipe, tmp_path)
    assert artifact.stat().st_size < 11e6, "a byte for each of 9.6 million weights"
    (found,) = large.sqnr_db(artifact, "tflite")
    assert found > 30
