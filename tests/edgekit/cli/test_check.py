"""``edgekit check``: the whole way from a model's file to the table, the document and the code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import edgekit
from edgekit import registry
from tests.edgekit.cli.conftest import Done

Call = Callable[..., Done]
MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        x = self.head(self.stem(x).mean((2, 3)))
        return {result}

def build():
    torch.manual_seed(0)
    return Net()

def example_inputs():
    return (torch.zeros(1, 3, 8, 8),)
"""


@pytest.fixture
def model(tmp_path: Path) -> Callable[[str], str]:
    def write(result: str) -> str:
        (tmp_path / "net.py").write_text(MODEL.replace("{result}", result))
        return "net.py:build"

    return write


def test_a_model_that_converts_everywhere_is_0(call: Call, model: Callable[[str], str]) -> None:
    done = call("check", model("x"), "--json")
    assert done.code == 0, done.err
    document = done.document
    assert document["converts"] is True
    assert list(document["runtimes"]) == list(registry.RUNTIMES)
    (conv,) = (o for o in document["operators"] if o["op"] == "aten.conv2d")
    assert conv["module"] == "stem.0" and conv["kind"] == "Conv2d"
    assert conv["source"].endswith("net.py:12")
    assert {name: v["fate"] for name, v in conv["runtimes"].items()} == dict.fromkeys(
        registry.RUNTIMES, "int8"
    )


def test_an_operator_that_a_runtime_lacks_is_8_and_comes_first(
    call: Call, model: Callable[[str], str]
) -> None:
    source = model("torch.linalg.matrix_exp(torch.outer(x[0], x[0]))")
    done = call("check", source, "--runtimes", "onnx,torchscript")
    assert done.code == 8, done.err
    lines = done.out.splitlines()
    assert all(len(line) <= 100 for line in lines)
    table = next(i for i, line in enumerate(lines) if line.startswith("operator"))
    assert lines[table].split() == ["operator", "n", "where", "onnx", "torchscript"]
    assert lines[table + 1].startswith("linalg_matrix_exp")
    assert "fails" in lines[table + 1] and "net.py:13" in lines[table + 1]
    assert "✗ onnx" in done.out and "-> Write it with other operators" in done.out
    assert "✓ torchscript" in done.out


def test_the_api_gives_the_same(model: Callable[[str], str], tmp_path: Path) -> None:
    project = edgekit.Project(model=model("x"), runtimes=["onnx"], cwd=tmp_path)
    outcome = project.check()
    assert outcome.converts
    assert outcome.checks[0].verdicts.keys() == {o.node for o in outcome.operators}


def test_a_model_that_cannot_be_exported_is_2(call: Call, model: Callable[[str], str]) -> None:
    done = call("check", model("x if x.sum() > 0 else -x"), "--runtimes", "onnx")
    assert done.code == 2
    assert "torch.export cannot trace the model" in done.err
