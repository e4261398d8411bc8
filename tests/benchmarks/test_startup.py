from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import startup
from benchmarks.common import Bar, Report, cpu_model, finish


def _run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.startup", "--quick", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _program(path: Path, line: str) -> Path:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return path


def test_quick_run_compares_with_a_given_program(tmp_path: Path) -> None:
    """Any program stands in for yolo here: what is tested is that it is run and compared."""
    ran = _run("--json", "--yolo", str(_program(tmp_path / "yolo", "sleep 0.01")))
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert [row["process"] for row in document["rows"]] == [
        "python -c pass",
        "import edgekit",
        "edgekit --help",
        "yolo --help",
    ]
    assert {len(values) for values in document["samples"].values()} == {startup.QUICK_ROUNDS}
    assert [bar["limit"] for bar in document["bars"]] == [0.2, 0, 0.125]
    assert document["conditions"]["cpu"]


def test_text_says_where_nothing_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    ran = _run()
    assert ran.returncode == 0, ran.stderr
    assert "edgekit --help" in ran.stdout
    assert "yolo --help: not compared" in ran.stdout


def test_a_yolo_that_is_not_there_or_fails_is_an_error(tmp_path: Path) -> None:
    missing = _run("--yolo", str(tmp_path / "missing"))
    assert missing.returncode == 2
    assert "is not an executable file" in missing.stderr
    failing = _run("--yolo", str(_program(tmp_path / "yolo", "exit 3")))
    assert failing.returncode == 1
    assert "exit status 3" in failing.stderr


def test_no_framework_is_loaded() -> None:
    assert startup.loaded_frameworks() == []


def test_a_loaded_framework_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "FRAMEWORKS", ("edgekit",))
    assert startup.loaded_frameworks() == ["edgekit"]


@pytest.mark.parametrize(
    ("bar", "quick", "code"),
    [
        (Bar("a", 0.2, 0.2), False, 0),
        (Bar("a", 0.21, 0.2), False, 1),
        (Bar("a", 0.21, 0.2), True, 0),
        (Bar("a", 1, 0, timing=False), True, 1),
    ],
)
def test_a_missed_bar_is_exit_code_1(bar: Bar, quick: bool, code: int) -> None:
    report = Report("x", ["process"], [["p"]], [bar])
    assert finish(report, as_json=False, quick=quick) == code


def test_slow_start_misses_both_bars() -> None:
    seconds = {"edgekit --help": [0.3, 0.31, 0.32], "yolo --help": [1.0, 1.1, 1.2]}
    report = startup.evaluate(seconds, ["torch"], {}, seed=0)
    assert [bar.kept for bar in report.bars] == [False, False, False]
    assert "loaded: torch" in report.notes


def test_cpu_model(tmp_path: Path) -> None:
    board = tmp_path / "cpuinfo"
    board.write_text("processor\t: 0\nCPU part\t: 0xd08\n\nModel\t\t: Raspberry Pi 4 Model B\n")
    assert cpu_model(board) == "Raspberry Pi 4 Model B"
    assert cpu_model(tmp_path / "missing")
