"""Running the real command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgekit import cli

ROOT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout, which must be exactly one JSON document."""
        return json.loads(self.out)


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Run ``edgekit ARGUMENTS`` inside this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Done:
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


def environment(**changes: str) -> Mapping[str, str]:
    """The environment of a process that finds this source tree."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


def execute(folder: Path, *arguments: object, **changes: str) -> Done:
    """Run ``edgekit ARGUMENTS`` as a process of its own in ``folder``."""
    done = subprocess.run(
        [sys.executable, "-m", "edgekit", *map(str, arguments)],
        cwd=folder,
        env=environment(**changes),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def spawn(tmp_path: Path) -> Callable[..., Done]:
    """Run ``edgekit ARGUMENTS`` as a process of its own, in an empty folder."""
    return lambda *arguments: execute(tmp_path, *arguments)
