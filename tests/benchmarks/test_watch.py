"""What a command and everything that it starts took, held to commands that take a known amount."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.watch import CommandFailed, Spent, watch

EAT = "import time; held = bytearray(%d * 2**20); time.sleep(1)"
SPIN = "import time\nwhile time.process_time() < 0.5: pass"


def spend(tmp_path: Path, code: str) -> Spent:
    return watch([sys.executable, "-c", code], cwd=tmp_path, log=tmp_path / "log")


def in_children(code: str, count: int) -> str:
    """A program that runs ``code`` in so many processes at once and does nothing itself."""
    return f"""
import subprocess, sys
children = [subprocess.Popen([sys.executable, "-c", {code!r}]) for _ in range({count})]
for child in children:
    child.wait()
"""


def test_time_passes_without_work(tmp_path: Path) -> None:
    spent = spend(tmp_path, "import time; time.sleep(0.6)")
    assert 0.6 <= spent.wall_s < 5
    assert spent.cpu_s < 0.4


def test_work_of_descendants_counts(tmp_path: Path) -> None:
    assert spend(tmp_path, in_children(SPIN, 2)).cpu_s >= 1.0


def test_memory_of_all_and_of_the_largest(tmp_path: Path) -> None:
    spent = spend(tmp_path, in_children(EAT % 100, 2))
    assert 100 * 2**20 < spent.process_bytes < 190 * 2**20
    assert spent.tree_bytes > 200 * 2**20


def test_a_failure_shows_the_end_of_the_output(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed) as caught:
        spend(tmp_path, "for i in range(100): print(i, 'sorry')\nraise SystemExit(3)")
    _, said, shown = str(caught.value).partition("ended with code 3:\n")
    assert said
    assert shown.splitlines()[-1] == "99 sorry"
    assert len(shown.splitlines()) < 20


def test_an_interrupt_leaves_no_process(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from benchmarks.watch import watch
import sys
watch([sys.executable, "-c", {in_children("import time; time.sleep(60)", 1)!r}],
      cwd=Path.cwd(), log=Path({str(tmp_path / "log")!r}))
"""
    watching = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    root = psutil.Process(watching.pid)
    end = time.monotonic() + 20
    while len(started := root.children(recursive=True)) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert len(started) == 2
    # As Ctrl-C would, but to it alone: the others are not told.
    os.kill(watching.pid, signal.SIGINT)
    assert watching.wait(timeout=10) != 0
    gone, alive = psutil.wait_procs(started, timeout=5)
    assert (len(gone), alive) == (2, [])
