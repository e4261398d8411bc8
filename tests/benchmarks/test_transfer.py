from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import sshd, transfer


def test_quick_run_compares_both_ways_and_leaves_nothing_behind(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.transfer", "--quick", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    copies = {row["copy"] for row in document["rows"]}
    assert copies == {"scp put", "edgekit put", "scp get", "edgekit get"}
    assert {len(values) for values in document["samples"].values()} == {transfer.QUICK_ROUNDS}
    assert [bar["limit"] for bar in document["bars"]] == [1.429, 1.429]
    assert not list(tmp_path.iterdir())


def test_a_bar_is_on_the_ratio_of_the_times() -> None:
    seconds = {"scp put": [1.0], "edgekit put": [1.5], "scp get": [2.0], "edgekit get": [2.0]}
    report = transfer.evaluate(seconds, 1_000_000, {}, 0)
    assert [bar.kept for bar in report.bars] == [False, True]


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"sshd did not start: .*NoSuchOption"):
        sshd.start(tmp_path / "s", options={"NoSuchOption": "yes"})
