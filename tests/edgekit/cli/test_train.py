"""``--train``: a short quantization-aware training, where nothing else keeps the budget."""

from __future__ import annotations

from pathlib import Path

from edgekit.bundle import Bundle
from tests.edgekit.cli.conftest import execute
from tests.fixtures.tiny_project import make_project, samples, write_samples

#: One channel is forty times as large as the two that matter more: one grid is too coarse for them.
UNEVEN = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding=1, groups=3), nn.Conv2d(3, 8, 1), nn.ReLU6(),
        nn.Conv2d(8, 3, 1),
    )
    with torch.no_grad():
        net[0].weight[0] *= 40
        net[1].weight[:, 0] /= 400
    return net

def example_inputs():
    return (torch.zeros(1, 3, 8, 8),)
"""
#: Between what calibration leaves, 0.027, and what training makes of it, 0.022.
MAX_DROP = "0.025"


def uneven_project(tmp_path: Path) -> Path:
    project = make_project(tmp_path, ["onnx"], model=UNEVEN)
    write_samples(project / "eval.npz", samples(200, seed=2))
    write_samples(project / "train.npz", samples(64, seed=3))
    settings = project / "edgekit.toml"
    text = settings.read_text().replace("[data]", '[data]\nmetric = "relative_error"')
    rungs = '[quantize]\nrungs = ["quantization_aware_training"]'
    settings.write_text(text.replace("[quantize]", rungs))
    return project


def test_training_brings_the_network_back_into_the_budget(tmp_path: Path) -> None:
    project = uneven_project(tmp_path)
    done = execute(project, "quantize", "--max-drop", MAX_DROP)
    assert done.code == 3, done.err
    done = execute(project, "quantize", "--max-drop", MAX_DROP, "--train", "train.npz")
    assert done.code == 0, done.err
    with Bundle.open(project / "bundle") as bundle:
        name, (calibration, training) = next(
            (name, rungs) for name, rungs in bundle.recipe_log.ladders.items() if rungs
        )
        assert training.rung == "quantization_aware_training" and training.kept
        assert training.note == "300 steps on 64 samples"
        assert training.drop < float(MAX_DROP) < calibration.drop
        assert bundle.recipe_log.recipes[name].steps == ("quantization_aware_training",)
        (choose,) = (e for e in bundle.manifest.evals if e.role == "choose")
        measured = {result.artifact_id: result.drop for result in choose.results}
    assert measured[name] < float(MAX_DROP), "the file is what the simulation promised"

    done = execute(project, "quantize", "--replay", "bundle", "-o", "again")
    assert done.code == 3, "what was trained cannot be made without the samples"
    assert "there are no training samples" in done.err, done.err

    # Made last, as the model is prepared by then: what judges may not be trained on.
    write_samples(project / "train.npz", samples(200, seed=2))
    done = execute(project, "quantize", "--max-drop", MAX_DROP, "--train", "train.npz")
    assert done.code == 2
    assert "eval.npz and train.npz share a sample" in done.err, done.err
