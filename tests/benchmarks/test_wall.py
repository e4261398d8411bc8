from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import wall
from benchmarks.common import finish
from benchmarks.watch import CommandFailed, Spent
from edgekit.config import ProjectConfig

MB = 10**6


def spending(edgekit: list[float], script: list[float]) -> wall.Spending:
    """Made-up rounds: wall seconds of edgekit, and of each of the four scripts."""
    spent = {wall.EDGEKIT: [Spent(s, 2 * s, 900 * MB, 500 * MB) for s in edgekit]}
    for i, name in enumerate(wall.SCRIPTS):
        spent[name] = [Spent(s, s, (i + 1) * 100 * MB, (i + 2) * 100 * MB) for s in script]
    return spent


def test_quick_run_makes_all_files_on_both_sides() -> None:
    """The real thing with a tiny model, two runtimes and their vendors' scripts."""
    command = [sys.executable, "-m", "benchmarks.wall", "--quick", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert [row["process"].strip() for row in document["rows"]] == [
        wall.EDGEKIT,
        wall.TOGETHER,
        *wall.QUICK,
    ]
    assert [bar["limit"] for bar in document["bars"]] == [1.0]
    for name in (wall.EDGEKIT, *wall.QUICK):
        for unit in ("wall_s", "cpu_s", "tree_bytes", "process_bytes"):
            (value,) = document["samples"][f"{name}, {unit}"]
            assert value > 0


def test_scripts_add_up_in_time_and_not_in_memory() -> None:
    report = wall.evaluate(spending([10, 12, 11], [4, 5, 6]), {}, seed=0)
    rows = {row[0]: row[1:] for row in report.rows}
    assert rows[wall.EDGEKIT] == ["11.0", "10.0..12.0", "22.0", "900", "500"]
    assert rows[wall.TOGETHER] == ["20.0", "16.0..24.0", "20.0", "400", "500"]
    assert rows["  litert"] == ["5.0", "4.0..6.0", "5.0", "200", "300"]
    assert "interval" in report.notes[0]


@pytest.mark.parametrize(
    ("edgekit", "quick", "code"), [(20, False, 0), (21, False, 1), (21, True, 0)]
)
def test_more_than_the_scripts_together_is_exit_code_1(
    edgekit: float, quick: bool, code: int
) -> None:
    report = wall.evaluate(spending([edgekit] * 3, [5] * 3), {}, seed=0)
    assert finish(report, as_json=False, quick=quick) == code


def test_one_round_says_that_it_has_no_interval() -> None:
    report = wall.evaluate(spending([10], [5]), {}, seed=0)
    assert report.bars[0].value == 0.5
    assert "no interval" in report.notes[0]


def test_the_example_is_copied_without_the_set_that_is_only_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = tmp_path / "example"
    for name in ("calib", "choose", "test"):
        (example / "photos" / name).mkdir(parents=True)
    for name in ("model.py", "edgekit.toml"):
        (example / name).write_bytes((wall.EXAMPLE / name).read_bytes())
    monkeypatch.setattr(wall, "EXAMPLE", example)
    wall.copy_example(tmp_path / "project")
    data = ProjectConfig.from_args(config=tmp_path / "project" / "edgekit.toml").data
    assert (data.calib, data.eval, data.report) == ("photos/calib", "photos/choose", None)
    assert sorted(path.name for path in (tmp_path / "project" / "photos").iterdir()) == [
        "calib",
        "choose",
    ]


def test_a_script_that_fails_or_leaves_out_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("raise SystemExit('no model today')")
    (tmp_path / "photos" / "calib").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    with pytest.raises(CommandFailed, match="no model today"):
        wall.run_script("torchscript_fx", tmp_path, tmp_path / "work")
    (tmp_path / "work" / "made" / "fp32.pt").write_bytes(b"x")
    (tmp_path / "work" / "made" / "int8.pt").write_bytes(b"")
    with pytest.raises(CommandFailed, match="2 files were to be made"):
        wall._check_files("torchscript_fx", tmp_path / "work" / "made", 2)


def test_missing_photos_are_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wall, "EXAMPLE", tmp_path)
    with pytest.raises(SystemExit) as caught:
        wall.main([])
    assert caught.value.code == 2
    assert "make photos" in capsys.readouterr().err
