"""Ctrl-C, SIGTERM and SIGHUP at any moment of `edgekit run`.

The tests below belong together, in this order: each starts the command on the same project and
interrupts it somewhat later on its way. What earlier ones finished is there already, so the whole
way is gone about once.
"""

from __future__ import annotations

import contextlib
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from edgekit import results
from edgekit.bundle import Bundle
from tests.edgekit.cli.conftest import environment, execute
from tests.fixtures.tiny_project import half_written, make_project, processes_with

MARK = "EDGEKIT_TEST_MARK"
LIMIT_S = 180.0
#: Time for the kernel to take down what was killed.
GRACE_S = 3.0


@dataclass
class Running:
    """A command in a session of its own, its stderr going to a file."""

    project: Path
    process: subprocess.Popen[bytes]
    mark: str
    log: IO[bytes]

    @property
    def said(self) -> str:
        return Path(self.log.name).read_text("utf-8", "replace")

    def wait_for(self, moment: Callable[[Running], bool]) -> None:
        """Returns when the moment has come; fails when the command ends before."""
        end = time.monotonic() + LIMIT_S
        while not moment(self):
            assert self.process.poll() is None, f"it never came to this moment: {self.said}"
            assert time.monotonic() < end, self.said
            time.sleep(0.01)

    def ended(self) -> int:
        return self.process.wait(timeout=60)

    def left(self) -> list[str]:
        """Processes that the command has left behind, wherever they hang now."""
        end = time.monotonic() + GRACE_S
        while (found := processes_with(MARK, self.mark)) and time.monotonic() < end:
            time.sleep(0.05)
        return found


@contextlib.contextmanager
def started(project: Path) -> Iterator[Running]:
    mark = secrets.token_hex(8)
    with tempfile.NamedTemporaryFile(dir=project.parent) as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "edgekit", "run"],
            cwd=project,
            env=environment(**{MARK: mark}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield Running(project, process, mark, log)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("interrupt"), ["onnx", "torchscript"])


def assert_whole(running: Running) -> None:
    """Nothing is left running, and nothing half-written is left to be seen."""
    assert running.left() == []
    project = running.project
    assert half_written(project, project.parent) == []
    if (project / "bundle").exists():
        Bundle.open(project / "bundle", verify=True).close()
    for name in results.run_names(project / "runs"):
        assert results.load(project / "runs" / name).probes, "a run without any result"
    current = project.parent / "device" / "current" / "tiny"
    if os.path.lexists(current):
        assert (current / "active.json").is_file()
        assert (current / "release" / "manifest.json").is_file()


def after(seconds: float) -> Callable[[Running], bool]:
    start: list[float] = []

    def moment(running: Running) -> bool:
        start.append(time.monotonic())
        return time.monotonic() - start[0] >= seconds

    return moment


def said(text: str) -> Callable[[Running], bool]:
    return lambda running: text in running.said


def runner_at_work(running: Running) -> bool:
    return any("/run_" in command for command in processes_with(MARK, running.mark))


def bundle_being_written(running: Running) -> bool:
    return any(running.project.glob(".bundle.edgekit-staging-*"))


def activating(running: Running) -> bool:
    return (running.project.parent / "device" / "activations").exists()


@pytest.mark.parametrize("seconds", [0.0, 0.03, 0.1, 0.2, 0.4])
def test_while_it_starts(project: Path, seconds: float) -> None:
    with started(project) as running:
        running.wait_for(after(seconds))
        running.process.send_signal(signal.SIGINT)
        code = running.ended()
        # Before our code runs, Python itself decides: it dies of the signal (which a shell shows
        # as 130), or says that it could not even start.
        early = code == -signal.SIGINT or "init_import_site" in running.said
        assert code == 130 or early, running.said
        assert_whole(running)


MOMENTS: list[tuple[str, Callable[[Running], bool], float, signal.Signals]] = [
    ("loading", said("Load and export the model ..."), 2.0, signal.SIGINT),
    ("reading samples", said("Read calibration and evaluation samples ..."), 0.7, signal.SIGTERM),
    ("first jobs", said("Make and check the artifacts ..."), 1.5, signal.SIGINT),
    ("exporting", said("Make and check the artifacts [1/"), 1.5, signal.SIGINT),
    ("a runner at work", runner_at_work, 0.1, signal.SIGINT),
    ("writing the bundle", bundle_being_written, 0.0, signal.SIGINT),
    ("pushing", said("push to here ..."), 0.2, signal.SIGHUP),
    ("probing", said("probe on here ..."), 2.0, signal.SIGTERM),
    ("probing on", said("probe on here [3/"), 1.0, signal.SIGINT),
    ("checking", said("Check on the device and activate ..."), 1.0, signal.SIGINT),
    ("switching", activating, 0.0, signal.SIGINT),
]


@pytest.mark.parametrize(
    ("name", "moment", "jitter_s", "how"), MOMENTS, ids=[moment[0] for moment in MOMENTS]
)
def test_on_its_way(
    project: Path,
    name: str,
    moment: Callable[[Running], bool],
    jitter_s: float,
    how: signal.Signals,
) -> None:
    with started(project) as running:
        running.wait_for(moment)
        time.sleep(random.Random(name).uniform(0, jitter_s))
        running.process.send_signal(how)
        assert running.ended() == 130, running.said
        assert "edgekit: Interrupted; nothing half-done was left behind." in running.said
        assert "Traceback" not in running.said
        assert_whole(running)


@pytest.mark.parametrize("pause_s", [0.0, 0.05])
def test_twice_in_quick_succession(project: Path, pause_s: float) -> None:
    """The second one must not cut the clean-up short."""
    (project / "model.py").write_text((project / "model.py").read_text() + "\n# touched\n")
    with started(project) as running:
        running.wait_for(said("Load and export the model ..."))
        time.sleep(0.5)
        running.process.send_signal(signal.SIGINT)
        time.sleep(pause_s)
        running.process.send_signal(signal.SIGINT)
        # Where our code had ended already, Python dies of it: 130 too, as a shell shows it.
        assert running.ended() in (130, -signal.SIGINT), running.said
        assert "Interrupted; nothing half-done" in running.said
        assert "Traceback" not in running.said
        assert_whole(running)


def test_afterwards_a_plain_run_succeeds(project: Path) -> None:
    done = execute(project, "run", "--strict", "--json")
    assert done.code == 0, done.err
    document = done.document
    assert len(document["quantize"]["artifacts"]) == 4 and document["failures"] == []
    status = execute(project, "status", "--verify", "--json").document
    assert status["problems"] == []
    chosen = document["deploys"][0]["activation"]["artifact_id"]
    assert [active["artifact_id"] for active in status["active"]] == [chosen]
