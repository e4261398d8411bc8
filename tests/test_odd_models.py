"""Models at the edge of what INT8 is for: what becomes of them, all the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgekit import registry
from edgekit.bundle import Bundle
from tests.edgekit.cli.conftest import execute
from tests.fixtures.tiny_project import make_project, write_samples

BATCH = 4
AT_ONCE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    )

def example_inputs():
    return (torch.zeros(4, 3, 8, 8),)
"""
NO_LAYER = """
import torch
from torch import nn

class Net(nn.Module):
    def forward(self, x):
        return torch.softmax(3 * x.mean((2, 3)), -1)

build = Net

def example_inputs():
    return (torch.zeros(1, 3, 8, 8),)
"""


NO_SCORES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x):
        return self.conv(x).mean((2, 3)).argmax(-1)

def build():
    torch.manual_seed(0)
    return Net()

def example_inputs():
    return (torch.zeros(1, 3, 8, 8),)
"""
NAN_INSIDE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x):
        return self.conv(torch.where(x > 0, torch.log(x), x)).mean((2, 3))

def build():
    torch.manual_seed(0)
    return Net()

def example_inputs():
    return (torch.zeros(1, 3, 8, 8),)
"""


def batches(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, BATCH, 3, 8, 8)).astype(np.float32)


def test_several_inputs_at_once(tmp_path: Path) -> None:
    project = make_project(tmp_path, registry.RUNTIMES, model=AT_ONCE)
    done = execute(project, "quantize")
    assert done.code == 2, "samples of one are no batches of four"
    assert "takes 4 at once" in done.err and "--input 1x3x8x8" in done.err
    write_samples(project / "calib.npz", batches(16, 1))
    write_samples(project / "eval.npz", batches(20, 2))
    done = execute(project, "quantize")
    assert done.code == 0, done.err
    with Bundle.open(project / "bundle") as bundle:
        found = {(a.runtime, a.recipe.name): a for a in bundle.manifest.artifacts}
        assert {runtime for runtime, recipe in found if recipe != "fp32"} == {*registry.RUNTIMES}
        assert all(a.inputs[0].shape == (BATCH, 3, 8, 8) for a in found.values())
        (choose,) = (e for e in bundle.manifest.evals if e.role == "choose")
        assert all(out.sqnr_db > 30 for r in choose.results for out in r.outputs)


def test_nothing_to_quantize(tmp_path: Path) -> None:
    """Float artifacts are made; INT8 is called what it is, and the exit code says that."""
    project = make_project(tmp_path, ["onnx"], model=NO_LAYER)
    done = execute(project, "quantize")
    assert done.code == 3, done.err
    assert "there is no convolution or matrix product in it" in " ".join(done.out.split())
    with Bundle.open(project / "bundle") as bundle:
        names = sorted((a.runtime, a.recipe.name) for a in bundle.manifest.artifacts)
    assert names == [("onnx", "fp32")]


def test_classes_without_scores(tmp_path: Path) -> None:
    """There is no float output to judge by: the classes are compared as numbers."""
    project = make_project(tmp_path, ["onnx"], model=NO_SCORES)
    done = execute(project, "quantize", "--max-drop", "0.9")
    assert done.code == 0, done.err
    with Bundle.open(project / "bundle") as bundle:
        assert {a.precision for a in bundle.manifest.artifacts} == {"fp32", "int8"}
        assert {a.outputs[0].dtype for a in bundle.manifest.artifacts} == {"int64"}


def test_what_cannot_be_calibrated_still_has_its_float_artifacts(tmp_path: Path) -> None:
    project = make_project(tmp_path, ["onnx"], model=NAN_INSIDE)
    done = execute(project, "quantize", "--json")
    assert done.code == 3, done.err
    assert {artifact["precision"] for artifact in done.document["artifacts"]} == {"fp32"}
    (failure,) = done.document["failures"]
    assert "repair static_wi8_ai8 failed" in failure["message"] and "NaN" in failure["message"]
