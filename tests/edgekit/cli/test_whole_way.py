"""The whole way with a tiny real model on this machine: run, reuse, crash, rollback, interrupt."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import edgekit
from edgekit.bundle import Bundle
from tests.edgekit.cli.conftest import ROOT, Done, environment, execute
from tests.fixtures.tiny_project import make_project

# A runtime of another package, whose exporter dies as a broken converter does.
PLUGIN = """
import os, signal
from edgekit.registry import RuntimeEntry

ENTRY = RuntimeEntry(
    extra="crasher", extension=".crash", exporter="crasher_plugin:export",
    inspector="crasher_plugin:inspect", runner="run_crasher", label="Crasher",
)

def export(*arguments, **keywords):
    print("about to crash", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
"""


def prepare(folder: Path) -> Path:
    """A project folder with data, and the plugin beside it."""
    project = make_project(folder, ["onnx", "crasher"])
    info = folder / "plugin" / "crasher-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: crasher\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[edgekit.runtimes]\ncrasher = crasher_plugin:ENTRY\n")
    (folder / "plugin" / "crasher_plugin.py").write_text(PLUGIN)
    return project


def path_of(project: Path) -> str:
    return f"{ROOT}:{project.parent / 'plugin'}"


def command(project: Path, *arguments: object) -> Done:
    return execute(project, *arguments, PYTHONPATH=path_of(project))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A project and how its first ``edgekit run --strict --json`` ended."""
    project = prepare(tmp_path_factory.mktemp("whole"))
    return project, command(project, "run", "--strict", "--json")


def test_a_crashing_exporter_fails_alone_and_strict_makes_it_8(first: tuple[Path, Done]) -> None:
    _, done = first
    assert done.code == 8, done.err
    assert "which --strict makes an error" in done.err
    document = done.document
    assert [artifact["id"] for artifact in document["quantize"]["artifacts"]] == [
        "tiny-onnx-fp32",
        "tiny-onnx-static_wi8_ai8",
    ]
    crashed = {failure["candidate"]: failure for failure in document["failures"]}
    assert set(crashed) == {"tiny-crasher-fp32", "tiny-crasher-static_wi8_ai8"}
    assert crashed["tiny-crasher-fp32"]["kind"] == "signal"
    assert "SIGSEGV" in crashed["tiny-crasher-fp32"]["message"]
    assert any("about to crash" in line for line in crashed["tiny-crasher-fp32"]["log_tail"])


def test_the_device_has_what_was_selected(first: tuple[Path, Done]) -> None:
    project, done = first
    (deploy,) = done.document["deploys"]
    selection = deploy["selection"]
    chosen = selection["candidates"][selection["chosen"]]
    assert deploy["activation"]["artifact_id"] == chosen["artifact_id"]
    status = command(project, "status", "--verify", "--json").document
    assert status["problems"] == []
    assert [active["artifact_id"] for active in status["active"]] == [chosen["artifact_id"]]
    assert (Path(deploy["run"]) / "selection.json").is_file()


def test_a_second_run_does_nothing_twice(first: tuple[Path, Done]) -> None:
    """--fresh is what measures again; the crashed candidates are tried again, being no result."""
    project, done = first
    again = command(project, "run", "--json")
    assert again.code == 0, again.err
    document = again.document
    assert document["quantize"]["reused"]
    assert document["quantize"]["digest"] == done.document["quantize"]["digest"]
    assert document["deploys"][0]["reused"]
    assert document["deploys"][0]["run"] == done.document["deploys"][0]["run"]


def test_the_text_names_the_failure_and_the_choice(first: tuple[Path, Done]) -> None:
    project, _ = first
    shown = command(project, "run", "-q")
    assert shown.code == 0
    assert "tiny-crasher-fp32" in shown.out and "SIGSEGV" in shown.out
    assert "Active on here: tiny-onnx-" in shown.out
    *lines, run, report = shown.out.splitlines()
    assert all(len(line) <= 100 and line == line.rstrip() for line in lines)
    assert run.startswith("Run: ")
    assert Path(report.removeprefix("Report: ")).is_file()


def test_another_bundle_can_be_rolled_back(first: tuple[Path, Done]) -> None:
    project, done = first
    nothing = command(project, "rollback")
    assert (nothing.code, "edgekit: " in nothing.err) == (4, True)
    made = command(
        project, "quantize", "--recipes", "fp32", "--runtimes", "onnx", "-o", "other", "--json"
    )
    assert made.code == 0, "only fp32 was asked for, so no INT8 is missing"
    deployed = command(project, "deploy", "other", "--json")
    assert deployed.code == 0, deployed.err
    release = done.document["deploys"][0]["activation"]["release"]
    assert deployed.document["activation"]["previous"] == release
    back = command(project, "rollback", "--json")
    assert (back.code, back.document["active"]["release"]) == (0, release)
    assert command(project, "gc", "--json").code == 0


def test_records_can_be_listed_selected_again_and_reported(first: tuple[Path, Done]) -> None:
    project, done = first
    run = Path(done.document["deploys"][0]["run"])
    rows = command(project, "results", "--json").document["rows"]
    assert run.name in [row["run"] for row in rows]
    assert command(project, "select", run.name, "--max-drop", "0.3").code == 0
    assert command(project, "report", run.name).code == 0
    assert (run / "report.html").stat().st_size > 10_000
    probed = command(project, "probe", "--artifact", "tiny-onnx-fp32", "--json")
    assert probed.code == 0, probed.err
    assert probed.document["activation"] is None
    probes = {c["artifact_id"] for c in probed.document["selection"]["candidates"] if c["p50_ns"]}
    assert probes == {"tiny-onnx-fp32"}


def test_nothing_within_the_budget_is_3(first: tuple[Path, Done]) -> None:
    project, _ = first
    done = command(project, "deploy", "--max-rss-mb", "0.1", "--json")
    assert (done.code, done.document["activation"]) == (3, None)
    assert "Nothing keeps the budget" in done.err


def test_the_same_from_python(first: tuple[Path, Done]) -> None:
    """A project of its own, without a file: arguments alone make one."""
    project, done = first
    api = edgekit.Project(
        cwd=project.parent,
        model="project/model.py:build",
        name="tiny",
        calib="project/calib.npz",
        eval="project/eval.npz",
        runtimes=["onnx"],
        recipes=["fp32"],
        bundle="from-python",
        max_drop=0.2,
        threads=[1],
        processes=1,
        budget_s=0.02,
    )
    outcome = api.quantize()
    assert [artifact.id for artifact in outcome.bundle.manifest.artifacts] == ["tiny-onnx-fp32"]
    target = edgekit.Target("here", "local", "", workdir=str(project.parent / "device-2"))
    deployed = api.deploy(target)
    assert deployed.activation is not None
    assert deployed.activation.artifact_id == "tiny-onnx-fp32"
    assert api.run([target]).deploys[0].reused
    again = api.select(budget=edgekit.Budget(max_drop=0.2, max_rss_bytes=1))
    assert again.selection is not None and again.selection.chosen is None
    with edgekit.Bundle.open(project / "bundle") as bundle:
        assert bundle.digest == done.document["quantize"]["digest"]


def tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


@pytest.mark.parametrize(
    ("arguments", "moment"),
    [
        (["quantize", "-o", "cut", "--name", "cut"], "Load and export"),
        (["quantize", "-o", "cut", "--max-drop", "0.5", "--name", "cut"], "Make and check"),
        (["run", "--fresh", "--no-activate"], "probe on here"),
    ],
)
def test_an_interrupt_leaves_nothing_half_done(
    first: tuple[Path, Done], arguments: list[str], moment: str, tmp_path: Path
) -> None:
    project = first[0]
    if "cut" in arguments:
        project = prepare(tmp_path)
    before = Bundle.open(first[0] / "bundle").digest
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekit", *arguments],
        cwd=project,
        env=environment(PYTHONPATH=path_of(project)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if moment in line:
            break
    else:
        pytest.fail(f"never came to {moment!r}")
    deadline = time.monotonic() + 60
    time.sleep(0.5)
    while len(family := tree(psutil.Process(process.pid))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)  # a busy machine starts workers late
    assert len(family) > 1, "the work runs in processes of its own"
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 130, rest
    assert "Interrupted" in rest and "Traceback" not in rest
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert not (project / "cut").exists()
    half_done = [path.name for path in project.iterdir() if path.name.startswith((".cut", ".bun"))]
    assert not half_done
    assert Bundle.open(first[0] / "bundle").digest == before
    if "cut" in arguments:
        shutil.rmtree(project)
