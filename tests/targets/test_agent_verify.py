"""Looking for damage: all of it is found, nobody has to wait for that, and none becomes active."""

from __future__ import annotations

import os
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.faults.bundles import ARTIFACT, MODEL, Release
from edgekit.bundle import Bundle
from edgekit.errors import DeviceError
from edgekit.progress import Quiet
from edgekit.targets import deploy
from edgekit.targets.agent import agent
from edgekit.targets.device import Device, connect
from edgekit.targets.doctor import check_runtime
from edgekit.targets.status import DeviceStatus
from tests.targets.conftest import local_target
from tests.targets.test_agent_faults import locked

#: What takes longer to hash than any step takes; sparse, so that it takes no room.
HEAVY_BYTES = 2 << 30


def root_of(device: Device) -> Path:
    return Path(device.channel.root)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def heavy(device: Device) -> Path:
    """A file of the active release that takes seconds to hash; it does not have its hash."""
    blob = root_of(device) / "store" / "sha256" / "00" / ("0" * 64)
    blob.parent.mkdir(exist_ok=True)
    with open(blob, "wb") as file:
        file.truncate(HEAVY_BYTES)
    release = (root_of(device) / "current" / MODEL / "release").resolve()
    (release / "heavy").symlink_to(os.path.relpath(blob, release))
    return blob


def verifying(
    other: Device, blob: Path, threads: ThreadPoolExecutor, model: str | None = None
) -> Future[DeviceStatus]:
    """``status --verify`` of a second host, at the moment when its agent reads ``blob``."""
    told = threads.submit(other.status, verify=True, model=model)
    state = blob.stat()
    while (state.st_dev, state.st_ino) not in agent._open_files():
        assert not told.done(), "it was not read"
        time.sleep(0.01)
    return told


def activate(device: Device, release: Release) -> None:
    """Without the health check, which is slow."""
    with Bundle.open(release.path) as bundle, locked(device) as held:
        artifact = bundle.artifact(ARTIFACT)
        runtime = device.runtime(artifact.runtime)
        linked = deploy.release_blobs(bundle, artifact)
        blobs = [*linked.values(), *deploy.runtime_blobs(runtime)]
        deploy.push(held, blobs, progress=Quiet())
        deploy.place_runtime(held, runtime)
        made = deploy.make_release(held, bundle, linked)
        deploy.switch(held, bundle, made, artifact, 1, runtime.folder)


def test_no_deploy_waits_for_somebody_who_verifies(
    device: Device, releases: list[Release], tmp_path: Path
) -> None:
    activate(device, releases[0])
    blob = heavy(device)
    with connect(local_target(tmp_path / "root")) as other, ThreadPoolExecutor(1) as threads:
        with locked(device) as held:
            told = verifying(other, blob, threads)
            held.call("missing", blobs=[])
            assert not told.done(), "the step came first"
        (problem,) = told.result().problems
        assert "heavy is damaged" in problem


def test_who_verifies_waits_for_no_deploy(
    device: Device, releases: list[Release], tmp_path: Path
) -> None:
    """As while a runtime is unpacked and runs for the first time."""
    activate(device, releases[0])
    root = agent.Root(device.channel.root)
    with connect(local_target(tmp_path / "root")) as other, agent.exclusive(root):
        assert other.status(verify=True).problems == ()


def test_what_goes_while_it_is_looked_at_is_no_damage(
    device: Device, releases: list[Release], tmp_path: Path
) -> None:
    activate(device, releases[0])
    blob = heavy(device)
    with connect(local_target(tmp_path / "root")) as other, ThreadPoolExecutor(1) as threads:
        told = verifying(other, blob, threads)
        for release in releases[1:]:
            activate(device, release)
        device.gc()
        assert not blob.exists() and not told.done()
        status = told.result()
        assert (status.problems, status.unused_problems) == ((), ())
        with Bundle.open(releases[-1].path) as last:
            assert last.digest.startswith(status.activations[0].release), "as it is at the end"


def test_what_comes_while_it_is_looked_at_is_read_too(
    device: Device, releases: list[Release], tmp_path: Path
) -> None:
    """The second look, which reads nothing, must not pass it unseen."""
    activate(device, releases[0])
    blob = heavy(device)
    with connect(local_target(tmp_path / "root")) as other, ThreadPoolExecutor(1) as threads:
        told = verifying(other, blob, threads, MODEL)
        for release in releases[1:]:
            activate(device, release)
        device.gc()
        with Bundle.open(releases[-1].path) as last:
            damaged = last.artifact(ARTIFACT).sha256
        flip(root_of(device) / "store" / "sha256" / damaged[:2] / damaged)
        assert not told.done()
        (problem,) = told.result().problems
        assert ARTIFACT in problem and "damaged" in problem


def test_status_works_where_nothing_can_be_written(device: Device, releases: list[Release]) -> None:
    """As on a card that turned read-only: its damage is what one wants to know."""
    activate(device, releases[0])
    with Bundle.open(releases[0].path) as bundle:
        sha256 = bundle.artifact(ARTIFACT).sha256
    flip(root_of(device) / "store" / "sha256" / sha256[:2] / sha256)
    root = str(root_of(device))
    subprocess.run(["mount", "--bind", root, root], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", root], check=True)
        (problem,) = device.status(verify=True).problems
    finally:
        subprocess.run(["umount", root], check=True)
    assert "damaged" in problem


def test_damage_in_what_nothing_active_needs_is_found_and_mended(
    device: Device, releases: list[Release]
) -> None:
    with Bundle.open(releases[0].path) as bundle:
        device.push(bundle, [ARTIFACT])
        assert device.status(verify=True).unused_problems == ()
        sound = {path: path.read_bytes() for path in root_of(device).glob("store/sha256/*/*")}
        runtime = root_of(device) / "runtimes" / device.runtime("executorch").folder
        parts = {path.stat().st_ino for path in runtime.iterdir()}
        for path in sound:
            flip(path)
        status = device.status(verify=True)
        assert status.problems == () and len(status.unused_problems) == len(sound)
        for path in sound:
            name = path.name if path.stat().st_ino not in parts else runtime.name
            assert any(name in problem for problem in status.unused_problems), path
        assert device.status(verify=True, model=MODEL).unused_problems == ()
        device.push(bundle, [ARTIFACT])
        assert device.status(verify=True).unused_problems == ()
        assert {path: path.read_bytes() for path in sound} == sound


def test_the_doctor_mends_what_it_tries(device: Device) -> None:
    assert check_runtime(device, "tflite", progress=Quiet()).ok
    runtime = root_of(device) / "runtimes" / device.runtime("tflite").folder
    sound = (runtime / "run_tflite.py").read_bytes()
    flip(runtime / "run_tflite.py")
    assert check_runtime(device, "tflite", progress=Quiet()).ok
    assert (runtime / "run_tflite.py").read_bytes() == sound


def test_a_file_is_read_once_whatever_its_names(tmp_path: Path) -> None:
    path, link = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"right")
    os.link(path, link)
    contents, state = agent.Contents(), path.stat()
    sha256 = agent.sha256_of(str(path))
    assert contents.are(str(path), sha256)
    path.write_bytes(b"wrong")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert contents.are(str(link), sha256) and not agent.Contents().are(str(link), sha256)


def test_a_rollback_to_what_is_damaged_is_refused(device: Device, releases: list[Release]) -> None:
    activate(device, releases[0])
    activate(device, releases[1])
    with Bundle.open(releases[0].path) as first, Bundle.open(releases[1].path) as second:
        sha256 = first.artifact(ARTIFACT).sha256
        path = root_of(device) / "store" / "sha256" / sha256[:2] / sha256
        sound = path.read_bytes()
        flip(path)
        with pytest.raises(DeviceError, match="before is damaged, so nothing was changed") as said:
            device.rollback(MODEL)
        assert str(path.name) in said.value.message or ARTIFACT in said.value.message
        assert "Deploy the bundle of that release" in said.value.remedy
        (active,) = device.status().activations
        assert second.digest.startswith(active.release)
        path.unlink()
        with pytest.raises(DeviceError, match="missing from the store"):
            device.rollback(MODEL)
        path.write_bytes(sound)
        assert first.digest.startswith(device.rollback(MODEL).release)
