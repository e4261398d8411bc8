"""What is done again when one thing changes, and that neither a kill nor a second run harms it.

The tests below share one project and belong together, in this order; each one changes one thing.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgekit import results
from edgekit.bundle import Bundle
from tests.edgekit.cli.conftest import Done, environment, execute
from tests.fixtures.tiny_project import half_written, make_project, samples, write_samples

FP32, INT8 = "tiny-onnx-fp32", "tiny-onnx-static_wi8_ai8"
#: "artifact" is an INT8 file by what it was made of, which an "export" takes for its recipe.
ALL_STEPS = [
    "artifact",
    "calibrate",
    "evaluate",
    "evaluate",
    "export",
    "export",
    "ladder",
    "load",
    "reference",
    "repair",
]


class Project:
    """A project whose finished steps are watched from one command to the next."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.steps = self._steps()

    def _steps(self) -> dict[str, int]:
        """Finished steps: each has an inode of its own for as long as it is not made anew."""
        return {p.name: p.stat().st_ino for p in (self.root / ".edgekit" / "work").glob("[a-z]*")}

    def edgekit(self, *arguments: object) -> Done:
        """A command that has to succeed."""
        done = execute(self.root, *arguments)
        assert done.code == 0, done.err
        return done

    def made(self) -> list[str]:
        """The steps that were made since the last time this was asked, by kind."""
        before, self.steps = self.steps, self._steps()
        new = [name for name, inode in self.steps.items() if before.get(name) != inode]
        return sorted(name.partition("-")[0] for name in new)

    def run(self, *arguments: object) -> Any:
        return self.edgekit("run", "--json", *arguments).document

    def quantize(self, *arguments: object) -> Any:
        return self.edgekit("quantize", "--json", *arguments).document

    def hashes(self) -> dict[str, str]:
        with Bundle.open(self.root / "bundle") as bundle:
            return {a.id: a.sha256 for a in bundle.manifest.artifacts}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    found = Project(make_project(tmp_path_factory.mktemp("resume"), ["onnx"]))
    found.run()
    assert found.made() == ALL_STEPS
    return found


def test_nothing_changed_nothing_is_done(project: Project) -> None:
    document = project.run()
    assert project.made() == []
    assert document["quantize"]["reused"] and document["deploys"][0]["reused"]


def test_another_budget_climbs_on_and_exports_nothing_that_is_there(project: Project) -> None:
    runs, before = results.run_names(project.root / "runs"), project.hashes()
    document = project.run("--max-drop", "0.5", "--max-rss-mb", "100000")
    assert project.made() == ["evaluate", "export", "repair"]
    assert project.hashes() == before
    assert document["quantize"]["reused"]
    (deploy,) = document["deploys"]
    assert deploy["reused"] and deploy["selection"]["budget"]["max_drop"] == 0.5
    assert results.run_names(project.root / "runs") == runs


def test_other_measurements_are_measured(project: Project) -> None:
    document = project.run("--budget-s", "0.03")
    assert project.made() == []
    assert not document["deploys"][0]["reused"]
    assert document["deploys"][0]["pushed"]["sent_blobs"] == 0


def test_a_touched_source_is_loaded_again_but_the_same_program_gives_the_same_files(
    project: Project,
) -> None:
    before = project.hashes()
    model = project.root / "model.py"
    model.write_text(model.read_text() + "\n# a remark\n")
    document = project.run()
    assert project.made() == ["load"]
    assert document["quantize"]["reused"] and document["deploys"][0]["reused"]
    assert project.hashes() == before


def test_another_program_makes_everything_anew(project: Project) -> None:
    before = project.hashes()
    model = project.root / "model.py"
    text = model.read_text()
    model.write_text(text.replace("manual_seed(0)", "manual_seed(1)"))
    assert not project.quantize()["reused"]
    assert project.made() == ALL_STEPS
    assert not set(before.values()) & set(project.hashes().values())
    # And back: what was made for the first program is still there.
    model.write_text(text)
    document = project.run()
    assert project.made() == ["load"]
    assert project.hashes() == before
    assert document["deploys"][0]["reused"], "this very bundle has been measured before"


def test_another_name_names_the_artifacts_and_makes_none(project: Project) -> None:
    document = project.quantize("--name", "other", "-o", "other")
    made = project.made()
    assert "export" not in made and "repair" not in made
    names = {FP32.replace("tiny", "other"), INT8.replace("tiny", "other")}
    assert {a["id"] for a in document["artifacts"]} == names
    assert {r["artifact_id"] for e in document["evals"] for r in e["results"]} == names


def test_a_changed_calibration_sample_remakes_int8_only(project: Project) -> None:
    before = project.hashes()
    changed = samples(20, seed=1)
    changed[3] *= 1.5
    write_samples(project.root / "calib.npz", changed)
    assert not project.quantize()["reused"]
    assert project.made() == ["artifact", "calibrate", "evaluate", "export", "ladder", "repair"]
    after = project.hashes()
    assert after[FP32] == before[FP32] and after[INT8] != before[INT8]
    with Bundle.open(project.root / "bundle") as bundle:
        ids = {a.id: a.calibration_id for a in bundle.manifest.artifacts}
    assert ids[FP32] == "" and ids[INT8]


def test_a_changed_evaluation_sample_judges_anew_and_exports_nothing(project: Project) -> None:
    before = project.hashes()
    changed = samples(20, seed=2)
    changed[5] *= 1.5
    write_samples(project.root / "eval.npz", changed)
    assert not project.quantize()["reused"], "the golden vectors are other ones"
    assert project.made() == ["evaluate", "evaluate", "export", "ladder", "reference", "repair"]
    assert project.hashes() == before


def test_a_damaged_bundle_is_put_together_again(project: Project) -> None:
    before = project.hashes()
    victim = next((project.root / "bundle" / "artifacts").iterdir())
    victim.write_bytes(victim.read_bytes()[:-1])
    assert not project.quantize()["reused"]
    assert project.made() == []
    assert project.hashes() == before


def test_a_second_runtime_leaves_the_first_alone(project: Project) -> None:
    before = project.hashes()
    document = project.quantize("--runtimes", "torchscript,onnx")
    assert project.made() == ["artifact", "evaluate", "evaluate", "export", "export"]
    assert len(document["artifacts"]) == 4
    assert project.hashes().items() >= before.items()


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "edgekit", *arguments],
        cwd=root,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_at(root: Path, moment: str, *arguments: str) -> None:
    """SIGKILL when ``moment`` is said: as from the kernel, without a chance to clean up."""
    process = start(root, *arguments)
    assert process.stderr is not None and process.stdout is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if moment in line:
            process.kill()
            break
    process.wait(timeout=60)
    process.stdout.close()
    process.stderr.close()
    assert process.returncode == -signal.SIGKILL, "".join(said)


def test_killed_on_its_way_the_next_run_goes_on(tmp_path: Path) -> None:
    project = Project(make_project(tmp_path, ["onnx"]))
    kill_at(project.root, "Make and check the artifacts [3/", "run")
    done_before = set(project.made())
    assert {"load", "reference", "repair"} <= done_before
    kept = dict(project.steps)
    assert not (project.root / "bundle").exists()
    # In the middle of the measurement; what measures on the device does not die with us.
    kill_at(project.root, "probe on here [1/", "run", "--processes", "6")
    assert kept.items() <= project._steps().items(), "what was done is not done again"
    Bundle.open(project.root / "bundle").close()
    done = project.edgekit("run", "--json", "--processes", "6")
    assert done.document["quantize"]["reused"]
    assert "is working with this device" not in done.err, "it joins its own measurement"
    assert len(results.run_names(project.root / "runs")) == 1
    assert half_written(tmp_path) == []
    assert project.edgekit("status", "--verify", "--json").document["problems"] == []


def test_two_at_once_do_not_harm_each_other(tmp_path: Path) -> None:
    project = Project(make_project(tmp_path, ["torchscript", "onnx"]))
    first = start(project.root, "quantize", "--json", "-o", "one")
    time.sleep(1.0)
    second = start(project.root, "quantize", "--json", "-o", "two")
    said = [process.communicate(timeout=300) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    found = []
    for name in ("one", "two"):
        with Bundle.open(project.root / name, verify=True) as bundle:
            found.append({a.id: a.sha256 for a in bundle.manifest.artifacts})
    assert len(found[0]) == 4 and found[0] == found[1]
    assert sum("Another edgekit works in this project" in err for _, err in said) == 1
    assert half_written(tmp_path) == []
