"""What the agent withstands: cuts at any point, damage, hostile names."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle import Bundle
from edgekit.errors import DeviceError
from edgekit.progress import Quiet
from edgekit.targets import deploy
from edgekit.targets.agent import agent
from edgekit.targets.channel import AgentRefused, Channel
from edgekit.targets.device import Device, connect
from tests.targets.conftest import local_target

ROOT = Path(__file__).parents[2]
ONNX, TFLITE = "tiny-onnx-fp32", "tiny-tflite-fp32"


def locked(device: Device, wait_s: float = 0.0) -> Any:
    return device.channel.locked("test", progress=Quiet(), wait_s=wait_s)


def blob_of(folder: Path, data: bytes) -> deploy.Blob:
    digest = hashlib.sha256(data).hexdigest()
    (folder / digest).write_bytes(data)
    return deploy.Blob(folder / digest, digest, len(data))


# --- uploads --------------------------------------------------------------------------------------


def test_what_arrives_damaged_is_not_stored(device: Device, tmp_path: Path) -> None:
    blob = blob_of(tmp_path, b"right")
    with locked(device) as held:
        Path(held.incoming, blob.sha256).write_bytes(b"wrong")
        with pytest.raises(AgentRefused, match="has the hash") as caught:
            held.call("commit", blobs=[blob.sha256])
        assert caught.value.kind == "hash" and caught.value.remedy
        assert not Path(held.incoming, blob.sha256).exists()
        assert held.call("missing", blobs=[{"sha256": blob.sha256, "size": 5}])["missing"]


def test_a_link_in_the_place_of_an_upload_is_not_followed(device: Device, tmp_path: Path) -> None:
    blob = blob_of(tmp_path, b"right")
    with locked(device) as held:
        os.symlink(blob.path, Path(held.incoming, blob.sha256))
        with pytest.raises(DeviceError):
            held.call("commit", blobs=[blob.sha256])
        assert held.call("missing", blobs=[{"sha256": blob.sha256, "size": 5}])["missing"]


def test_a_host_killed_in_the_middle_of_an_upload_is_resumed(
    device: Device, tmp_path: Path
) -> None:
    """kill -9 between and within files: what was committed stays, the rest is sent again."""
    sizes = [9_000_000, 9_000_000, 9_000_000]
    blobs = [blob_of(tmp_path, os.urandom(size)) for size in sizes]
    described = [(str(b.path), b.sha256, b.size_bytes) for b in blobs]
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from edgekit.progress import Quiet
        from edgekit.targets import deploy
        from edgekit.targets.device import connect
        from edgekit.types import Target

        blobs = [deploy.Blob(Path(p), s, n) for p, s, n in {described!r}]
        sent = 0
        class Killer(Quiet):
            def stage(self, name, total=None):
                from contextlib import nullcontext
                return nullcontext(self)
            def advance(self, n=1, note=""):
                global sent
                sent += n
                if sent > 13_000_000:
                    os.kill(os.getpid(), signal.SIGKILL)
        device = connect(Target("here", "local", "", {device.channel.root!r}))
        with device.channel.locked("x", progress=Quiet(), wait_s=0) as held:
            deploy.push(held, blobs, progress=Killer())
    """)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    parts = list(Path(device.channel.root, "store", "incoming").glob("*/*"))
    assert len(parts) == 1 and parts[0].stat().st_size < sizes[1], "half a file was left"
    with locked(device) as held:  # at once: its owner is a dead process of this machine
        report = deploy.push(held, blobs, progress=Quiet())
    assert (report.sent_blobs, report.present_blobs) == (2, 1)
    for blob in blobs:
        stored = Path(device.channel.root, "store/sha256", blob.sha256[:2], blob.sha256)
        assert hashlib.sha256(stored.read_bytes()).hexdigest() == blob.sha256
    assert not parts[0].exists()


def test_too_little_space_is_said_before_sending(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = replace(blob_of(tmp_path, b"x"), size_bytes=10**15)
    with locked(device) as held, pytest.raises(DeviceError, match="MB are needed") as caught:
        deploy.push(held, [blob], progress=Quiet())
    assert "gc" in caught.value.remedy


# --- cuts between the steps of a deploy -----------------------------------------------------------

_CUT_AGENT = """
import os, sys
sys.argv = [{agent!r}, {root!r}]
sys.path.insert(0, os.path.dirname({agent!r}))
import importlib.util
spec = importlib.util.spec_from_file_location("agent", {agent!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
calls = 0
def counted(name):
    original = getattr(os, name)
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == {cut}:
            os.kill(os.getpid(), 9)
        return original(*args, **kwargs)
    setattr(os, name, call)
for name in ("rename", "replace", "symlink", "mkdir", "fsync", "ftruncate", "pwrite"):
    counted(name)
code = module.main(sys.argv)
print(calls, file=sys.stderr)
sys.exit(code)
"""


def _cut_call(
    held: Channel, cut: int, op: str, **fields: Any
) -> subprocess.CompletedProcess[bytes]:
    """The agent's operation, killed by SIGKILL before its ``cut``-th change of the disk."""
    code = _CUT_AGENT.format(agent=held.agent, root=held.root, cut=cut)
    request = json.dumps({"schema": 1, "op": op, "token": held.token, **fields})
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        input=request.encode(),
        capture_output=True,
        check=False,
    )


def test_a_cut_at_every_step_of_a_release_and_a_switch_leaves_the_old_one_active(
    device: Device, bundle: Bundle
) -> None:
    before = device.activate(bundle, TFLITE, 1)
    artifact = bundle.artifact(ONNX)
    runtime = device.runtime("onnx")
    linked = deploy.release_blobs(bundle, artifact)
    blobs = [*linked.values(), *deploy.runtime_blobs(runtime)]
    with locked(device) as held:
        deploy.push(held, blobs, progress=Quiet())
    operations: list[tuple[str, dict[str, Any]]] = [
        ("runtime", {"name": runtime.folder, "description": runtime.description}),
        (
            "release",
            {
                "model": "tiny",
                "manifest": bundle.digest,
                "links": {path: blob.sha256 for path, blob in linked.items()},
            },
        ),
        (
            "activate",
            {
                "model": "tiny",
                "active": {
                    "release": bundle.digest[:16],
                    "artifact_id": ONNX,
                    "path": artifact.path,
                    "runtime": "onnx",
                    "runtime_dir": runtime.folder,
                    "threads": 1,
                },
            },
        ),
    ]
    cuts = 0
    for op, fields in operations:
        for cut in range(1, 200):
            with locked(device) as held:
                done = _cut_call(held, cut, op, **fields)
            status = device.status(verify=True)
            assert status.problems == ()
            if done.returncode == 0:
                break
            assert done.returncode == -signal.SIGKILL, done.stderr
            cuts += 1
            if op != "activate":
                assert status.activations == (before,)
            else:  # the switch itself is the one step that may or may not have happened
                assert status.activations[0].artifact_id in (TFLITE, ONNX)
                if status.activations != (before,):
                    assert status.activations[0].previous == before.release
        else:
            raise AssertionError(f"{op} never came to its end")
    assert cuts > 30
    (active,) = device.status(verify=True).activations
    assert active.artifact_id == ONNX
    device.gc()
    assert device.rollback("tiny").artifact_id == TFLITE
    assert device.status(verify=True).problems == ()


def test_a_runtime_is_complete_or_absent(device: Device) -> None:
    runtime = device.runtime("tflite")
    with locked(device) as held:
        deploy.push(held, deploy.runtime_blobs(runtime), progress=Quiet())
    final = Path(device.channel.root, "runtimes", runtime.folder)
    for cut in range(1, 100):
        with locked(device) as held:
            done = _cut_call(
                held, cut, "runtime", name=runtime.folder, description=runtime.description
            )
        if final.exists():
            assert {p.name for p in final.iterdir()} == {
                "runtime.json", "run_tflite.py", "runner_core.py",
            }  # fmt: skip
        if done.returncode == 0:
            break
    assert cut > 3 and final.exists()


# --- names ----------------------------------------------------------------------------------------

BAD_NAMES = ("..", ".", "", "a/b", "../x", "/x", "a\0b", ".hidden", "x" * 200, 5, None, "a\nb")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_from_manifests_cannot_leave_their_folder(device: Device, name: object) -> None:
    good = "0" * 64
    requests: Sequence[tuple[str, dict[str, Any]]] = (
        ("release", {"model": name, "manifest": good, "links": {}}),
        ("release", {"model": "m", "manifest": name, "links": {}}),
        ("release", {"model": "m", "manifest": good, "links": {str(name): name}}),
        ("runtime", {"name": name, "description": '{"files": {}}'}),
        ("rollback", {"model": name}),
        ("commit", {"blobs": [name]}),
        ("missing", {"blobs": [{"sha256": name, "size": 1}]}),
        ("forget", {"job": name}),
        ("cancel", {"job": name}),
        ("follow", {"job": name, "offset": 0, "wait_s": 0}),
        ("start", {"job": name, "steps": []}),
        ("selftest", {"runtime": name, "limit_s": 1}),
    )
    with locked(device) as held:
        for op, fields in requests:
            with pytest.raises(agent.Refused) as caught:
                agent.OPERATIONS[op](
                    agent.Root(held.root), {"token": held.token, **fields}, lambda event: None
                )
            assert caught.value.kind == "invalid", (op, str(caught.value))


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x", "a//b", "a/.x", "a\\b", "c:x", ""])
def test_paths_of_links_stay_inside(path: str) -> None:
    with pytest.raises(agent.Refused):
        agent.checked("path", path)


def test_usual_paths_are_fine() -> None:
    for path in ("manifest.json", "golden/inputs/x.bin", "artifacts/a-b_c.1+2.tflite", "golden/é"):
        assert agent.checked("path", path) == path


def test_nonsense_requests_are_answered(device: Device) -> None:
    for op in ("nonsense", "__init__", ""):
        with pytest.raises(AgentRefused, match="unknown request"):
            device.channel.call(op)
    with pytest.raises(AgentRefused, match="no longer holds"):
        device.channel.call("missing", blobs=[])
    with locked(device) as held, pytest.raises(AgentRefused, match="malformed"):
        held.call("missing")


def test_a_damaged_agent_on_the_device_is_replaced(device: Device, tmp_path: Path) -> None:
    Path(device.channel.agent).write_text("raise SystemExit('damaged')")
    with connect(local_target(tmp_path / "root")) as again:
        assert again.facts().cpu_count >= 1
