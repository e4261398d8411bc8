"""The benchmarks of the engine and of the ladder, on a small project."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import engine, ladder
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
