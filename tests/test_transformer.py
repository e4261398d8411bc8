"""A transformer, whose attention stays float: dynamic INT8 all the way, told apart from a lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.bundle import Bundle
from edgekit.types import Artifact, RungResult
from tests.edgekit.cli.conftest import execute
from tests.fixtures.tiny_project import make_project

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.qkv = nn.Linear(24, 32), nn.Linear(32, 96)
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 5)
        self.norm = nn.LayerNorm(32)

    def forward(self, x):
        x = self.embed(x.transpose(1, 2).flatten(2))
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head((x + self.down(nn.functional.gelu(self.up(x)))).mean(1))

def build():
    torch.manual_seed(0)
    return Net()

def example_inputs():
    return (torch.zeros(1, 3, 8, 8),)
"""
RUNTIMES = ("onnx", "torchscript")
INT8 = "dynamic_wi8_afp32"


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Artifact], dict[str, tuple[RungResult, ...]]]:
    """The INT8 artifacts by runtime, and their ladders."""
    project = make_project(tmp_path_factory.mktemp("net"), RUNTIMES, model=MODEL)
    done = execute(project, "quantize")
    assert done.code == 0, done.err
    with Bundle.open(Path(project / "bundle")) as bundle:
        found = [
            a for a in bundle.manifest.artifacts if a.recipe.name == INT8 and not a.recipe.variant
        ]
        ladders = {a.runtime: bundle.recipe_log.ladders.get(a.id, ()) for a in found}
        return {a.runtime: a for a in found}, ladders


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_attention_in_float_breaks_no_promise(
    made: tuple[dict[str, Artifact], object], runtime: str
) -> None:
    found = made[0][runtime].inspection
    assert found is not None and found.int8_mac_share is not None
    assert 0.5 < found.int8_mac_share < 0.95


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_dynamic_int8_is_repaired(
    made: tuple[object, dict[str, tuple[RungResult, ...]]], runtime: str
) -> None:
    ladder = made[1][runtime]
    assert ladder[0].rung == "calibration" and ladder[-1].sqnr_db > 30
