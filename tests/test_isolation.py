"""One bad exporter, whatever it does, is one failed candidate; bad data is said before any work.

The bad exporters come from a package of somebody else, found through its entry points, as a real
one would be.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.bundle import Bundle
from tests.edgekit.cli.conftest import ROOT, Done, execute
from tests.fixtures.tiny_project import (
    half_written,
    make_project,
    processes_with,
    samples,
    write_samples,
)

TIMEOUT_S = 30
MEMORY_MB = 1500
REAL = ("tiny-torchscript-fp32", "tiny-torchscript-static_wi8_ai8")
PLUGIN = """
import ctypes, os, subprocess, sys, time
from edgekit.registry import RuntimeEntry

def entry(function, extension):
    return RuntimeEntry(
        extra="", extension=extension, exporter="bad_exporters:" + function,
        inspector="edgekit.quantize.inspect_torchscript:inspect", runner="", label=function,
    )

SEGFAULT = entry("segfault", ".segfault")
HANG = entry("hang", ".hang")
EAT = entry("eat", ".eat")
FAIL = entry("fail", ".fail")
LIE = entry("lie", ".lie")

def segfault(request):
    print("about to read address 0", flush=True)
    ctypes.string_at(0)

def hang(request):
    # A child in a session of its own, as a converter's server process would be.
    child = [sys.executable, "-c", "import time; time.sleep(600)"]
    subprocess.Popen(child, start_new_session=True)
    print("waiting for something that does not come", flush=True)
    time.sleep(600)

def eat(request):
    print("allocating", flush=True)
    held = []
    while True:
        held.append(os.urandom(1 << 20) * 32)
        time.sleep(0.01)

def fail(request):
    raise KeyError("layer7")

def lie(request):
    from dataclasses import replace
    from edgekit.quantize.recipes import FP32
    from edgekit.quantize.to_torchscript import export
    return export(replace(request, recipe=FP32))
"""
NAMES = ("segfault", "hang", "eat", "fail", "lie")
# Fully different classes of output, one of them so large that int8 cannot tell the others apart.
HOPELESS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, -10000.0]))

    def forward(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))

def build():
    torch.manual_seed(0)
    return Net()

def example_inputs():
    return (torch.zeros(1, 3, 8, 8),)
"""


def add_plugin(folder: Path) -> None:
    """Installs the package of bad exporters into ``folder``."""
    info = folder / "bad_exporters-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad_exporters\nVersion: 1.0\n")
    points = "\n".join(f"bad-{name} = bad_exporters:{name.upper()}" for name in NAMES)
    (info / "entry_points.txt").write_text(f"[edgekit.runtimes]\n{points}\n")
    (folder / "bad_exporters.py").write_text(PLUGIN)


def command(project: Path, *arguments: object) -> Done:
    plugin = project.parent / "plugin"
    return execute(project, *arguments, PYTHONPATH=f"{ROOT}:{plugin}", EDGEKIT_TEST=str(project))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """A project, and how the first ``edgekit quantize --json`` with all bad exporters ended."""
    folder = tmp_path_factory.mktemp("isolation")
    add_plugin(folder / "plugin")
    project = make_project(folder, ["torchscript", *(f"bad-{name}" for name in NAMES)])
    limits = ("--timeout-s", TIMEOUT_S, "--memory-mb", MEMORY_MB)
    # Only the recipe that all of them can fail in: one hang is enough to wait for.
    return project, command(
        project, "quantize", "--recipes", "static_wi8_ai8", *limits, "--json", "-o", "first"
    )


@pytest.fixture(scope="module")
def failures(first: tuple[Path, Done]) -> Mapping[str, Any]:
    """The failures of the first run by exporter."""
    return {failure["runtime"]: failure for failure in first[1].document["failures"]}


def test_the_others_finish(first: tuple[Path, Done]) -> None:
    project, done = first
    assert done.code == 0, done.err
    with Bundle.open(project / "first") as bundle:
        assert [artifact.id for artifact in bundle.manifest.artifacts] == [REAL[1]]
        logged = {failure.runtime for failure in bundle.recipe_log.failures}
    assert logged == {f"bad-{name}" for name in NAMES}
    assert half_written(project) == []


@pytest.mark.parametrize(
    ("name", "stage", "kind", "message", "log"),
    [
        ("segfault", "export", "signal", "died of SIGSEGV", "about to read address 0"),
        ("hang", "export", "timeout", f"limit of {TIMEOUT_S} s", "waiting for something"),
        ("eat", "export", "memory", f"limit of {MEMORY_MB} MB", "allocating"),
        ("fail", "export", "exception", "KeyError: 'layer7'", "bad_exporters.py"),
        ("lie", "inspect", "label", "only 0% of its multiply-accumulates are in int8", ""),
    ],
)
def test_each_failure_says_what_happened(
    failures: Mapping[str, Any], name: str, stage: str, kind: str, message: str, log: str
) -> None:
    found = failures[f"bad-{name}"]
    assert (found["candidate"], found["stage"]) == (f"tiny-bad-{name}-static_wi8_ai8", stage)
    assert found["kind"] == kind
    assert message in found["message"]
    assert log in "\n".join(found["log_tail"])
    assert kind == "exception" or found["remedy"]


def test_the_segfault_is_located(failures: Mapping[str, Any]) -> None:
    assert any("bad_exporters.py" in line for line in failures["bad-segfault"]["log_tail"])


def test_nothing_of_a_stopped_exporter_lives_on(first: tuple[Path, Done]) -> None:
    """Not even what it started in a session of its own."""
    assert processes_with("EDGEKIT_TEST", str(first[0])) == []


def test_strict_makes_it_8_and_the_text_shows_it(first: tuple[Path, Done]) -> None:
    project, _ = first
    some = ("--runtimes", "torchscript,bad-segfault,bad-lie", "-o", "some")
    done = command(project, "quantize", *some, "--strict")
    assert done.code == 8, done.err
    assert "4 candidates failed, which --strict makes an error" in done.err
    assert "tiny-bad-segfault-static_wi8_ai8" in done.out and "SIGSEGV" in done.out
    assert "about to read address 0" in done.out
    assert all(len(line) <= 100 for line in done.out.splitlines()[:-1])
    again = command(project, "quantize", *some, "--json")
    assert again.code == 0, again.err
    document = again.document
    assert document["reused"], "the same exporters failed in the same way: nothing is new"
    assert {artifact["id"] for artifact in document["artifacts"]} == set(REAL)
    fp32 = {f["candidate"]: f for f in document["failures"] if f["candidate"].endswith("fp32")}
    # A plain float file is no lie; but nothing here can run the files of that package.
    assert set(fp32) == {"tiny-bad-segfault-fp32", "tiny-bad-lie-fp32"}
    assert fp32["tiny-bad-lie-fp32"]["stage"] == "evaluate"


def test_a_run_names_each_failure_once(first: tuple[Path, Done]) -> None:
    project, _ = first
    some = ("--runtimes", "torchscript,bad-segfault", "--recipes", "static_wi8_ai8")
    for _ in range(2):
        done = command(project, "run", *some, "--json")
        assert done.code == 0, done.err
        found = [failure["candidate"] for failure in done.document["failures"]]
        assert found == ["tiny-bad-segfault-static_wi8_ai8"]
    assert done.document["deploys"][0]["reused"], (
        "a crash that repeats itself measures nothing anew"
    )


def test_all_exporters_failing_is_an_error_of_its_own(first: tuple[Path, Done]) -> None:
    project, _ = first
    done = command(project, "quantize", "--runtimes", "bad-segfault,bad-fail", "-o", "none")
    assert done.code == 8
    assert "No artifact could be made" in done.err and "SIGSEGV" in done.err
    assert "edgekit doctor" in done.err
    assert not (project / "none").exists()
    assert half_written(project) == []


def bad_data(folder: Path) -> None:
    """Data sets that cannot be used, beside the good ones."""
    good = samples(20, seed=1)
    write_samples(folder / "small.npz", samples(4, seed=5))
    write_samples(folder / "shared.npz", np.concatenate([samples(20, seed=3), good[7:8]]))
    broken = good.copy()
    broken[3, 0, 1, 2, 2] = np.nan
    write_samples(folder / "nan.npz", broken)
    write_samples(folder / "shape.npz", np.zeros((20, 1, 3, 9, 9), np.float32))
    write_samples(folder / "constant.npz", np.ones_like(good))
    write_samples(folder / "empty.npz", good[:0])
    (folder / "garbage.npz").write_bytes(b"PK\x03\x04 this is no archive")
    (folder / "raises.py").write_text("def samples():\n    raise OSError('the disk is gone')\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eval", "small.npz"], "has 4 samples; a drop of 0.2 can only be seen with at least 5"),
        (["--max-drop", "0.01"], "has 20 samples; a drop of 0.01 can only be seen with at least"),
        (["--eval", "shared.npz"], "share a sample"),
        (["--calib", "nan.npz"], "NaN"),
        (["--calib", "shape.npz"], "(1, 3, 9, 9)"),
        (["--calib", "constant.npz"], "all values are the same"),
        (["--calib", "empty.npz"], "no samples"),
        (["--calib", "garbage.npz"], "garbage.npz"),
        (["--eval", "missing.npz"], "not found"),
        (["--calib", "raises.py:samples"], "the disk is gone"),
    ],
)
def test_bad_data_is_refused_before_any_work(
    first: tuple[Path, Done], arguments: list[str], message: str
) -> None:
    project, _ = first
    bad_data(project)
    done = command(project, "quantize", "-o", "refused", *arguments)
    assert done.code == 2, done.err
    assert message in done.err
    error = [line for line in done.err.splitlines() if line.startswith(("edgekit: ", "  -> "))]
    assert error[0].startswith("edgekit: ")
    assert "Traceback" not in done.err and "bug" not in done.err
    assert error[-1].startswith("  -> "), "what to do next"
    assert "Make and check" not in done.err
    assert not (project / "refused").exists()
    assert half_written(project) == []


def test_a_recipe_that_no_runtime_has_is_refused(first: tuple[Path, Done]) -> None:
    project, _ = first
    some = ("--runtimes", "onnx,torchscript", "--recipes", "fp32,static_wi8_ai16")
    done = command(project, "quantize", "-o", "refused", *some)
    assert done.code == 2
    assert "onnx, torchscript cannot do static_wi8_ai16" in done.err
    assert "Runtimes that can: tflite" in done.err


def test_no_int8_within_the_budget_is_3_and_a_float_one_is_deployed(tmp_path: Path) -> None:
    project = make_project(tmp_path, ["onnx"], model=HOPELESS)
    toml = project / "edgekit.toml"
    # With all rungs there is hope even for this one.
    toml.write_text(toml.read_text().replace("[quantize]\n", "[quantize]\nrungs = []\n"))
    made = command(project, "quantize", "--json")
    assert made.code == 3, made.err
    assert "No INT8 artifact keeps a drop of 0.2 on this host" in made.err
    assert "--max-drop" in made.err
    document = made.document
    assert document["within_budget"] == []
    drops = {result["artifact_id"]: result["drop"] for result in document["evals"][0]["results"]}
    assert drops["tiny-onnx-static_wi8_ai8"] > 0.2
    Bundle.open(project / "bundle").close()
    done = command(project, "run", "--json")
    assert done.code == 0, "the float twin keeps the budget"
    (deploy,) = done.document["deploys"]
    chosen = deploy["selection"]["candidates"][deploy["selection"]["chosen"]]
    assert chosen["artifact_id"] == "tiny-onnx-fp32"
    int8 = next(c for c in deploy["selection"]["candidates"] if c["precision"] == "int8")
    assert not int8["eligible"] and "drop" in int8["reason"]


def test_the_console_script_is_the_same_program() -> None:
    script = Path(sys.executable).with_name("edgekit")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("edgekit ")
