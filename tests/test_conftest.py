"""The rule of conftest.py: in CI a skip fails, unless it is marked as the platform's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")


def outcome(folder: Path, source: str, *, ci: str) -> tuple[int, str]:
    shutil.copy(CONFTEST, folder)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = platform_specific: x\n")
    (folder / "test_it.py").write_text(f"import pytest\n\n{source}\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    env = {**os.environ, "CI": ci, "PYTHONPATH": str(CONFTEST.parents[1])}
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout


IN_A_TEST = "def test_a():\n    pytest.skip('no such tool')"
IN_A_MODULE = "pytest.importorskip('no_such_module_xyz')"
BY_A_MARK = "@pytest.mark.skipif(True, reason='no such tool')\ndef test_a(): pass"


@pytest.mark.parametrize("source", [IN_A_TEST, IN_A_MODULE, BY_A_MARK])
def test_a_skip_fails_in_ci_and_says_why(tmp_path: Path, source: str) -> None:
    code, text = outcome(tmp_path, source, ci="true")
    assert code not in (0, pytest.ExitCode.NO_TESTS_COLLECTED), text
    assert "was skipped, which fails in CI" in text
    assert "no such tool" in text or "no_such_module_xyz" in text


def test_a_skip_is_a_skip_elsewhere(tmp_path: Path) -> None:
    code, text = outcome(tmp_path, IN_A_TEST, ci="")
    assert code == 0
    assert "1 skipped" in text


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (f"@pytest.mark.platform_specific\n{IN_A_TEST}", "1 skipped"),
        ("@pytest.mark.xfail\ndef test_a(): assert False", "1 xfailed"),
        ("def test_a(): pass", "1 passed"),
    ],
)
def test_other_outcomes_stay_in_ci(tmp_path: Path, source: str, expected: str) -> None:
    code, text = outcome(tmp_path, source, ci="true")
    assert code == 0, text
    assert expected in text
