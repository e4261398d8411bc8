"""What the agent keeps of a deploy that was cut: the lock of a vanished host, half-sent files, and
damage that is mended in place."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.bundles import ARTIFACT, MODEL, Release
from edgekit.bundle import Bundle
from edgekit.errors import DeviceError, LinkLost
from edgekit.progress import Quiet
from edgekit.targets import deploy
from edgekit.targets.agent import agent
from edgekit.targets.channel import AgentRefused
from edgekit.targets.device import Device
from edgekit.targets.local import LocalTransport

HERE = agent.process_table()


def locked(device: Device, wait_s: float = 0.0) -> Any:
    return device.channel.locked("test", progress=Quiet(), wait_s=wait_s)


def lock_file(device: Device) -> Path:
    return Path(device.channel.root, "lock")


def blob_of(folder: Path, data: bytes) -> deploy.Blob:
    digest = hashlib.sha256(data).hexdigest()
    (folder / digest).write_bytes(data)
    return deploy.Blob(folder / digest, digest, len(data))


@pytest.fixture
def elsewhere(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device does not share its processes with this host, as across a network."""
    code = Path(device.channel.agent).read_text()
    assert "def process_table() -> str:" in code
    away = code.replace(
        "def process_table() -> str:", "def process_table() -> str:\n    return 'x'"
    )
    Path(device.channel.agent).write_text(away)


def _take(device: Device, owner: dict[str, Any]) -> None:
    device.channel.call("lock", who="deploy by somebody", owner=owner, wait_s=0)


@pytest.mark.usefixtures("elsewhere")
def test_the_lock_of_a_killed_process_of_this_host_is_taken_at_once(device: Device) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = agent.identity(dead.pid)
    _take(device, owner)
    with pytest.raises(AgentRefused, match="somebody is working") as caught, locked(device):
        pass
    assert caught.value.kind == "busy"
    dead.kill()
    dead.communicate()
    with locked(device):
        pass


@pytest.mark.usefixtures("elsewhere")
def test_a_lock_that_a_lost_connection_left_to_this_process_is_taken_at_once(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = LinkLost("the cable was pulled.")
    original = LocalTransport.run

    def run(self: LocalTransport, argv: Any, **options: Any) -> Any:
        if b'"unlock"' in options.get("stdin", b""):
            raise lost
        return original(self, argv, **options)

    monkeypatch.setattr(LocalTransport, "run", run)
    busy = pytest.raises(AgentRefused, match="working with this device")
    with locked(device), busy, locked(device):
        pass  # the outer one is still at work
    assert json.loads(lock_file(device).read_text())["token"]
    monkeypatch.setattr(LocalTransport, "run", original)
    with locked(device):
        pass


@pytest.mark.usefixtures("elsewhere")
def test_the_lock_of_another_host_runs_out_without_a_sign_of_life(
    device: Device, tmp_path: Path
) -> None:
    _take(device, {"table": "another host", "pid": 1, "start": "1"})
    content = json.loads(lock_file(device).read_text())
    lock_file(device).write_text(json.dumps({**content, "expires": 0}))
    part = Path(device.channel.root, "store", "incoming", content["token"], "0" * 64)
    part.write_bytes(b"bytes that still arrive")
    with pytest.raises(AgentRefused, match="somebody is working"), locked(device):
        pass
    old = part.stat().st_mtime - agent.LEASE_S - 1
    os.utime(part, (old, old))
    with locked(device) as held:
        assert held.incoming != str(part.parent)
    with pytest.raises(AgentRefused, match="no longer holds"):
        device.channel.call("gc", token=content["token"])


def test_a_full_disk_does_not_lose_the_lock(device: Device) -> None:
    with locked(device):
        size = lock_file(device).stat().st_size
        assert size >= 2048
    assert lock_file(device).stat().st_size == size, "no block is ever asked for again"


@pytest.fixture
def half_sent(device: Device, tmp_path: Path) -> Iterator[tuple[deploy.Blob, Path]]:
    """A file of 3 MB of which an upload that was cut has left the first MB."""
    blob = blob_of(tmp_path, os.urandom(3_000_000))
    with locked(device) as held:
        part = Path(held.incoming, blob.sha256)
        part.write_bytes(blob.path.read_bytes()[:1_000_000])
    yield blob, part


def _push(device: Device, blob: deploy.Blob) -> deploy.PushReport:
    with locked(device) as held:
        report = deploy.push(held, [blob], progress=Quiet())
    stored = Path(device.channel.root, "store", "sha256", blob.sha256[:2], blob.sha256)
    assert stored.read_bytes() == blob.path.read_bytes()
    assert not list(Path(device.channel.root, "store", "incoming").iterdir())
    return report


def test_the_next_push_sends_the_rest(device: Device, half_sent: tuple[deploy.Blob, Path]) -> None:
    report = _push(device, half_sent[0])
    assert (report.sent_bytes, report.sent_blobs) == (2_000_000, 1)


def test_what_has_the_size_but_not_the_content_is_sent_anew(
    device: Device, half_sent: tuple[deploy.Blob, Path]
) -> None:
    """As after a power cut: the length is that of the file, the content is zeros."""
    blob, part = half_sent
    part.write_bytes(bytes(3_000_000))
    assert _push(device, blob).sent_bytes == 3_000_000


def test_a_power_cut_in_a_commit_leaves_a_part_that_can_be_written(
    device: Device, half_sent: tuple[deploy.Blob, Path]
) -> None:
    """Its write permission was gone before it was moved into the store."""
    blob, part = half_sent
    part.write_bytes(bytes(part.stat().st_size))
    part.chmod(0o444)
    with locked(device) as held:
        adopted = Path(held.incoming, blob.sha256)
        assert adopted.stat().st_mode & 0o200, "root could write it anyway, pi could not"


def test_an_old_writer_reaches_only_its_own_copy(
    device: Device, half_sent: tuple[deploy.Blob, Path]
) -> None:
    blob, part = half_sent
    with open(part, "ab") as writer, locked(device) as held:
        writer.write(b"garbage that trickles in" * 1000)
        writer.flush()
        report = deploy.push(held, [blob], progress=Quiet())
    assert report.sent_bytes == 2_000_000
    assert device.status(verify=True).problems == ()


def test_gc_removes_what_was_half_sent(device: Device, half_sent: tuple[deploy.Blob, Path]) -> None:
    assert device.gc() == 1_000_000
    assert _push(device, half_sent[0]).sent_bytes == 3_000_000


def test_gc_follows_no_link_out_of_its_folder(device: Device, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    root = Path(device.channel.root)
    for folder, name in (("store/sha256", "ab"), ("releases", "m"), ("activations", "m"),
                         ("runtimes", "r"), ("spool", "j"), ("store/incoming", "t")):  # fmt: skip
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).symlink_to(outside)
    device.gc()
    assert (outside / "precious").read_text() == "kept"
    assert not (root / "store" / "sha256" / "ab").is_symlink()


def _needed_files(device: Device) -> list[Path]:
    """Everything that the active release needs, but for links."""
    root = Path(device.channel.root)
    found = [*root.glob("store/sha256/*/*"), *root.glob("activations/*/*/active.json")]
    return found + [path for path in root.glob("runtimes/*/*") if path.is_file()]


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def test_a_bit_that_flips_in_any_file_is_found_and_the_next_deploy_mends_it(
    device: Device, releases: list[Release]
) -> None:
    with Bundle.open(releases[0].path) as bundle:
        active = device.activate(bundle, ARTIFACT, 1)
        assert device.status(verify=True).problems == ()
        places = {path.stat().st_ino: path for path in _needed_files(device)}  # hard links once
        for place in places.values():
            sound = place.read_bytes()
            place.chmod(0o755)
            place.write_bytes(_flipped(sound))
            assert device.status(verify=True).problems, place
            place.write_bytes(sound)
        for place in places.values():
            place.write_bytes(_flipped(place.read_bytes()))
        mended = device.activate(bundle, ARTIFACT, 1)
        assert (mended.release, mended.artifact_id) == (active.release, ARTIFACT)
        assert device.status(verify=True).problems == ()


def test_a_damaged_record_is_named_and_replaced(device: Device, releases: list[Release]) -> None:
    root = Path(device.channel.root)
    with Bundle.open(releases[0].path) as first, Bundle.open(releases[1].path) as second:
        before = device.activate(first, ARTIFACT, 1)
        device.activate(second, ARTIFACT, 1)
        record = root / "current" / MODEL / "active.json"
        record.write_text(record.read_text().replace('"threads": 1', '"threads": 3'))
        (problem,) = device.status().problems
        assert "active.json is damaged" in problem
        with pytest.raises(DeviceError, match=r"active\.json is damaged"):
            device.gc()
        assert device.activate(second, ARTIFACT, 1).previous == before.release
        (root / "current" / MODEL).unlink()
        (root / "current" / MODEL).symlink_to("../activations/nowhere")
        assert device.activate(second, ARTIFACT, 1).artifact_id == ARTIFACT
        assert device.status(verify=True).problems == ()
