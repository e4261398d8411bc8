"""Activation, rollback, clean-up and verification on a real device root."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle import Bundle
from edgekit.errors import DeployRolledBack, DeviceError, UsageError
from edgekit.targets import runtimes
from edgekit.targets.abi import Abi
from edgekit.targets.agent import agent
from edgekit.targets.deploy import release_blobs
from edgekit.targets.device import Device, connect
from edgekit.targets.runner import RunnerArguments, parse_report, spec
from edgekit.types import Target
from tests.targets.conftest import INPUTS, N, local_target, make_bundle
from tests.targets.test_agent_faults import locked

ONNX, TFLITE = "tiny-onnx-fp32", "tiny-tflite-fp32"


def root_of(device: Device) -> Path:
    return Path(device.channel.root)


@pytest.fixture(scope="module")
def newer(
    models: Mapping[str, Path], float_model: Any, cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:  # fmt: skip
    """Another bundle of the same model, so with another manifest."""
    two = {runtime: models[runtime] for runtime in ("onnx", "tflite")}
    return make_bundle(two, float_model, cache, tmp_path_factory.mktemp("newer"), version="2")


@pytest.fixture(scope="module")
def lying(
    models: Mapping[str, Path], float_model: Any, cache: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:  # fmt: skip
    """A bundle whose stored outputs are not those of its ONNX artifact."""
    two = {runtime: models[runtime] for runtime in ("onnx", "tflite")}
    folder = tmp_path_factory.mktemp("lying")
    return make_bundle(two, float_model, cache, folder, spoil={"onnx": 0.5}, version="3")


def test_what_is_activated_is_all_that_an_app_needs(device: Device, bundle: Bundle) -> None:
    activation = device.activate(bundle, ONNX, 2)
    assert (activation.model, activation.artifact_id, activation.threads) == ("tiny", ONNX, 2)
    assert activation.release == bundle.digest[:16] and activation.previous is None
    assert device.status(verify=True).activations == (activation,)
    current = root_of(device) / "current" / "tiny"
    assert os.readlink(current) == "../activations/tiny/1"
    release = current / "release"
    assert os.readlink(release).endswith(f"releases/tiny/{bundle.digest[:16]}")
    manifest = (release / "manifest.json").read_bytes()
    assert manifest == bundle.file("manifest.json").read_bytes()
    active = json.loads((current / "active.json").read_text())
    artifact = bundle.artifact(ONNX)
    assert (release / active["path"]).read_bytes() == bundle.file(artifact.path).read_bytes()
    for tensor in bundle.manifest.golden.inputs:
        assert (release / tensor.path).read_bytes() == bundle.file(tensor.path).read_bytes()
    for link in release.rglob("*"):
        if not link.is_dir():
            assert link.is_symlink() and not os.readlink(link).startswith("/")


def test_the_active_release_runs_from_its_own_files_alone(
    device: Device, bundle: Bundle, tmp_path: Path
) -> None:
    """What the links lead to is enough, also after the whole root has moved."""
    device.activate(bundle, "tiny-executorch-fp32", 1)
    moved = tmp_path / "moved"
    root_of(device).rename(moved)
    folder = (moved / "current" / "tiny").resolve()
    active = json.loads((folder / "active.json").read_text())
    runtime = folder / active["runtime_path"]
    arguments = RunnerArguments(
        model=str(folder / active["artifact_path"]),
        threads=active["threads"],
        samples=N,
        inputs=tuple(
            str(folder / "release" / tensor.path) for tensor in bundle.manifest.golden.inputs
        ),
        specs=tuple(spec(s.dtype, s.shape) for s in INPUTS),
    )
    command = json.loads((runtime / "runtime.json").read_text())["argv"]
    done = device.channel.transport.run(
        [command[0].replace("{dir}", str(runtime)), *arguments.argv()], timeout_s=60
    )
    assert done.returncode == 0 and parse_report(done.stdout.decode()).samples == N


def test_a_second_release_remembers_the_first_and_rollback_flips(
    device: Device, bundle: Bundle, newer: Bundle
) -> None:
    first = device.activate(bundle, ONNX, 1)
    second = device.activate(newer, TFLITE, 2)
    assert second.previous == first.release and second.release != first.release
    back = device.rollback("tiny")
    assert (back.release, back.artifact_id, back.threads) == (first.release, ONNX, 1)
    assert back.previous == second.release
    forth = device.rollback("tiny")
    assert (forth.release, forth.artifact_id, forth.threads) == (second.release, TFLITE, 2)
    assert device.status(verify=True).problems == ()


def test_the_same_again_changes_nothing(device: Device, bundle: Bundle) -> None:
    device.activate(bundle, ONNX, 1)
    two = device.activate(bundle, TFLITE, 1)
    assert two.previous == bundle.digest[:16], "another artifact of one release is a change"
    assert device.activate(bundle, TFLITE, 1) == two
    assert os.readlink(root_of(device) / "current" / "tiny").endswith("/2")
    assert device.rollback("tiny").artifact_id == ONNX


def test_a_failing_health_check_leaves_the_old_release_active(
    device: Device, bundle: Bundle, lying: Bundle
) -> None:
    with pytest.raises(DeployRolledBack, match="Nothing is active") as caught:
        device.activate(lying, ONNX, 1)
    assert caught.value.exit_code == 7
    before = device.activate(bundle, TFLITE, 1)
    with pytest.raises(DeployRolledBack, match=f"{TFLITE} stays active") as caught:
        device.activate(lying, ONNX, 1)
    assert "dB against the same file's outputs on the host" in caught.value.message
    assert device.status(verify=True).activations == (before,)
    assert not list((root_of(device) / "spool").iterdir())


def test_a_runner_that_crashes_at_the_health_check_is_rolled_back(
    device: Device, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = device.activate(bundle, TFLITE, 1)
    crash = ("{python}", "-I", "-S", "-c", "import os; os.kill(os.getpid(), 4)")
    original = runtimes.resolve

    def resolve(runtime: str, abi: Abi, **options: Any) -> runtimes.Runtime:
        return dataclasses.replace(original(runtime, abi, **options), argv=crash)

    monkeypatch.setattr(runtimes, "resolve", resolve)
    with pytest.raises(DeployRolledBack, match="SIGILL"):
        device.activate(bundle, ONNX, 1)
    assert device.status().activations == (before,)


def test_rollback_without_anything_before(device: Device, bundle: Bundle) -> None:
    with pytest.raises(DeviceError, match="nothing is active for tiny"):
        device.rollback("tiny")
    device.activate(bundle, ONNX, 1)
    with pytest.raises(DeviceError, match="never replaced"):
        device.rollback("tiny")


def _files(root: Path) -> set[str]:
    return {p.name for p in (root / "store" / "sha256").glob("*/*")}


def test_gc_keeps_what_current_and_previous_need(
    device: Device, bundle: Bundle, newer: Bundle
) -> None:
    root = root_of(device)
    device.push(bundle, ["tiny-torchscript-fp32"])
    device.activate(bundle, "tiny-executorch-fp32", 1)
    device.activate(bundle, ONNX, 1)
    device.activate(newer, TFLITE, 1)
    (root / "store" / "sha256" / "ab").mkdir(exist_ok=True)
    (root / "runtimes" / ".new-left-by-a-power-cut").mkdir()
    removed = device.gc()
    # ExecuTorch was two activations ago; its libraries are 14 MB.
    assert removed > 10_000_000
    names = [path.name.split("-")[0] for path in (root / "runtimes").iterdir()]
    assert sorted(names) == ["onnx", "tflite"]
    assert sorted(p.name for p in (root / "activations" / "tiny").iterdir()) == ["2", "3"]
    assert bundle.artifact("tiny-torchscript-fp32").sha256 not in _files(root)
    assert {bundle.artifact(ONNX).sha256, newer.artifact(TFLITE).sha256} <= _files(root)
    assert device.status(verify=True).problems == ()
    assert device.gc() == 0
    assert device.rollback("tiny").artifact_id == ONNX
    assert device.status(verify=True).problems == ()
    # What is left can be deployed again.
    assert device.activate(bundle, "tiny-executorch-fp32", 1).previous == bundle.digest[:16]


@pytest.mark.parametrize("model", ["m.tmp", "m.1a2b3c4d.tmp"])
def test_gc_keeps_a_model_whatever_its_name_ends_in(
    device: Device, bundle: Bundle, model: str
) -> None:
    active = device.activate(bundle, ONNX, 1)
    record = json.loads((root_of(device) / "current" / "tiny" / "active.json").read_text())
    links = {p: b.sha256 for p, b in release_blobs(bundle, bundle.artifact(ONNX)).items()}
    with locked(device) as held:
        held.call("release", model=model, manifest=bundle.digest, links=links)
        held.call("activate", model=model, active=record)
    assert device.gc() == 0
    status = device.status(verify=True)
    assert [one.model for one in status.activations] == [model, active.model]
    assert status.problems == ()


def test_gc_removes_what_a_power_cut_left_of_a_switch(device: Device, bundle: Bundle) -> None:
    device.activate(bundle, ONNX, 1)
    left = Path(agent.temporary_name(str(root_of(device) / "current" / "tiny")))
    left.symlink_to("../activations/tiny/1")
    (active,) = device.status(verify=True).activations
    device.gc()
    assert not left.is_symlink() and device.status(verify=True).activations == (active,)


def test_a_flipped_bit_is_found_and_a_deploy_mends_it(device: Device, bundle: Bundle) -> None:
    device.activate(bundle, ONNX, 1)
    root = root_of(device)
    artifact = bundle.artifact(ONNX)
    blob = root / "store" / "sha256" / artifact.sha256[:2] / artifact.sha256
    runner = next((root / "runtimes").glob("onnx-*/run_onnx.py"))
    for path in (blob, runner):
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert device.status().problems == (), "without hashing, nothing is seen"
    problems = device.status(verify=True).problems
    assert len(problems) == 2 and all("damaged" in problem for problem in problems)
    assert any(str(runner) in problem for problem in problems)
    device.activate(bundle, ONNX, 1)
    assert device.status(verify=True).problems == ()


def test_a_missing_blob_is_a_problem_and_a_broken_switch_is_named(
    device: Device, bundle: Bundle
) -> None:
    device.activate(bundle, ONNX, 1)
    root = root_of(device)
    sha256 = bundle.artifact(ONNX).sha256
    (root / "store" / "sha256" / sha256[:2] / sha256).unlink()
    (problem,) = device.status().problems
    assert "is missing" in problem
    (root / "current" / "tiny").unlink()
    (root / "current" / "tiny").symlink_to("../activations/tiny/9")
    (problem,) = device.status().problems
    assert "does not lead to an activation" in problem
    with pytest.raises(DeviceError, match="does not lead to an activation"):
        device.gc()


def test_connecting_checks_profile_options_and_python(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    with pytest.raises(DeviceError, match=r"does not fit the profile rpi4.*architecture"):
        connect(Target("here", "local", "", root, "rpi4"))
    with pytest.raises(UsageError, match="rpi9") as caught:
        connect(Target("here", "local", "", root, "rpi9"))
    assert "rpi4" in caught.value.remedy
    with pytest.raises(UsageError, match="pigeon"):
        connect(Target("here", "pigeon", "", root))
    with pytest.raises(DeviceError, match="could not be started"):
        connect(local_target(tmp_path / "root", python="/bin/false"))
    with (
        connect(local_target(tmp_path / "root", lock_wait_s="soon")) as device,
        pytest.raises(UsageError, match="lock_wait_s"),
    ):
        device.gc()


def test_home_is_expanded_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with connect(Target("here", "local", "")) as device:
        assert device.channel.root == str(tmp_path / ".edgekit")
    assert (tmp_path / ".edgekit").stat().st_mode & 0o077 == 0, "nobody else's business"
