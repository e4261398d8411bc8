"""The benchmarks of the engine and of the ladder, on a small project."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import engine, equalisation, ladder
from edgekit import quality
from edgekit.quantize.prepare import as_module, export_program, prepare, run
from edgekit.quantize.rungs import RUNGS
from edgekit.types import RungResult
from tests.fixtures.tiny_project import make_project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("engine"), ["onnx"])


def test_another_budget_makes_nothing_again(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert engine.main([str(project), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [bar["value"] for bar in found["bars"] if not bar["timing"]][1:] == [0]
    assert len(found["rows"]) == 5
    assert 0 < found["bars"][1]["value"] < engine._ENGINE_GB


def test_what_is_made_again_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = tmp_path / "ranges.json"
    ranges.write_text("{}")
    os.utime(ranges, ns=(1, 1))
    made = engine.Engine(tmp_path, None, None)  # type: ignore[arg-type]
    monkeypatch.setattr(made, "repair", lambda *_: None)
    assert engine._made_again(made, "x", ()) == []
    monkeypatch.setattr(made, "repair", lambda *_: ranges.write_text("{}"))
    assert engine._made_again(made, "x", ()) == ["ranges.json"]


def test_every_rung_of_the_ladder_is_told(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ladder.main([str(project), "--quick", "--json"]) == 0
    rungs = [row["rung"] for row in json.loads(capsys.readouterr().out)["rows"]]
    assert rungs == ["calibration", "bias_correction", "hessian_rounding"]


def test_a_rung_that_a_project_is_to_show_has_to_gain_there() -> None:
    def rung(name: str, sqnr_db: float, *, kept: bool = True) -> RungResult:
        return RungResult(name, kept=kept, sqnr_db=sqnr_db, drop=0.0, seconds=1.0)

    climbed = [rung("calibration", 20.0), rung("a", 21.5), rung("b", 22.0), rung("c", 21.0)]
    bars = {bar.what: bar.kept for bar in ladder.report(climbed, ("a", "b", "absent")).bars}
    assert bars == {"a: gain": True, "b: gain": False, "absent: gain": False}
    assert ladder.report(climbed).bars == []


@pytest.mark.parametrize("name", sorted(ladder._SHOWN))
def test_what_is_to_be_shown_exists(name: str) -> None:
    projects = Path(ladder.__file__).parent / "projects"
    assert (projects / name).is_dir() or name == engine.EXAMPLE.name
    assert set(ladder._SHOWN[name]) <= RUNGS.keys()


def test_equalisation_is_told_beside_none(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert equalisation.main([str(project), "--quick", "--json"]) == 0
    none, half = json.loads(capsys.readouterr().out)["rows"]
    assert none["streams"] == "0" and none["calibration"].endswith(" dB")
    assert half["strength"] == "0.5"


class Streams(nn.Module):
    """Two streams: one through a ReLU, one with a residual sum; what SiLU reads is none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.c, self.d = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.b(self.a(x).relu())
        y = y + self.c(y)
        result: torch.Tensor = nn.functional.silu(self.d(y))
        return result


def test_streams_can_be_scaled_without_a_trace() -> None:
    inputs = (torch.rand(1, 3, 16, 16),)
    gm = as_module(prepare(export_program(Streams().eval(), inputs), inputs)[0])
    wanted = run(gm, inputs)[0]
    found = list(equalisation.streams(gm))
    assert sorted((len(s.writers), len(s.readers)) for s in found) == [(1, 1), (2, 2)]
    for stream in found:
        equalisation._scale(gm, stream, torch.linspace(0.1, 10, 8))
    given = run(gm, inputs)[0]
    assert quality.sqnr_db(wanted.numpy(), given.numpy()) > 90
