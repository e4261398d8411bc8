"""Runtimes that come as archives: unpacked whole or not at all, and nowhere but in their folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from edgekit.errors import DeviceError
from edgekit.progress import Quiet
from edgekit.targets import deploy, runtimes
from edgekit.targets.abi import host_abi
from edgekit.targets.channel import AgentRefused
from edgekit.targets.device import Device
from edgekit.targets.doctor import check_runtime
from edgekit.targets.runtimes import Runtime, RuntimeArchive

MODULE = "import base64\nVALUE = 41 + 1\n"
RUNNER = """
import json, os, part.module, runner_core
found = os.path.relpath(part.module.__file__, os.path.dirname(__file__))
print(json.dumps({"schema": 1, "selftest": "ok", "runtime_version": found}))
"""
Make = Callable[..., Runtime]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A runtime of a small runner and one archive."""

    def made(
        members: Mapping[str, str], leave_out: tuple[str, ...] = (), edit: object = None
    ) -> Runtime:
        path = tmp_path / "part.whl"
        with zipfile.ZipFile(path, "w") as file:
            for name, text in members.items():
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_DEFLATED
                if text.startswith("->"):
                    info.external_attr = (stat.S_IFLNK | 0o777) << 16
                file.writestr(info, text)
        if callable(edit):
            path.write_bytes(edit(path.read_bytes()))
        script = tmp_path / "run_made.py"
        script.write_text(RUNNER)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        base = runtimes.resolve("onnx", host_abi())
        files = (
            runtimes.RuntimeFile(
                script.name, script, hashlib.sha256(script.read_bytes()).hexdigest()
            ),
            next(file for file in base.files if file.name == "runner_core.py"),
        )
        argv = ("{python}", "-B", "-E", "-s", "-S", "{dir}/run_made.py")
        size = sum(map(len, members.values()))
        archive = RuntimeArchive(path, digest, leave_out, size)
        return Runtime("made", "1.0", base.abi, files, argv, (archive,))

    return made


def place(device: Device, runtime: Runtime) -> Path:
    blobs = deploy.runtime_blobs(runtime)
    with device.channel.locked("test", progress=Quiet(), wait_s=5) as held:
        deploy.push(held, blobs, progress=Quiet())
        deploy.place_runtime(held, runtime)
    return Path(device.channel.root) / "runtimes" / runtime.folder


def none_is_there(device: Device) -> bool:
    folder = Path(device.channel.root) / "runtimes"
    return not folder.is_dir() or not list(folder.iterdir())


GOOD = {
    "part/__init__.py": "",
    "part/module.py": MODULE,
    "part/big/unused.so": "x" * 5000,
    "part-1.dist-info/METADATA": "Name: part\n",
}


def test_an_archive_is_unpacked_into_the_runtimes_folder(device: Device, make: Make) -> None:
    runtime = make(GOOD, ("part/big/*",))
    folder = place(device, runtime)
    assert (folder / "part" / "module.py").read_text() == MODULE
    assert not (folder / "part" / "big").exists(), "left out"
    compiled = json.loads((folder / "compiled.json").read_text())
    assert [name for name in compiled if "module." in name], "the first run compiled what it used"
    device._runtimes["onnx"] = runtime
    check = check_runtime(device, "onnx", progress=Quiet())
    assert check.ok and check.version == "part/module.py", check


@pytest.mark.parametrize(
    "name",
    ["../evil.py", "/etc/evil", "a/../../evil", "c:evil", "a\\b", ".hidden/x", "a/" * 12 + "x"],
)
def test_no_member_leaves_the_folder(name: str, device: Device, make: Make, tmp_path: Path) -> None:
    with pytest.raises(AgentRefused, match="not a valid path") as caught:
        place(device, make({**GOOD, name: "evil"}))
    assert caught.value.kind == "invalid" and none_is_there(device)
    assert not list(tmp_path.rglob("evil*"))


def test_links_are_refused(device: Device, make: Make) -> None:
    with pytest.raises(AgentRefused, match="not a plain file"):
        place(device, make({**GOOD, "part/link": "->/etc/passwd"}))
    assert none_is_there(device)


def test_nothing_is_replaced(device: Device, make: Make) -> None:
    with pytest.raises(AgentRefused, match=r"two parts of a runtime hold .*runner_core\.py"):
        place(device, make({**GOOD, "runner_core.py": "evil"}))
    assert none_is_there(device)


def test_a_bomb_is_stopped(device: Device, make: Make) -> None:
    """What the archive says it holds is more than any runtime; so much is never written."""

    def lie(data: bytes) -> bytes:
        with_size = bytearray(data)
        at = with_size.rfind(b"PK\1\2", 0, with_size.rfind(b"PK\5\6"))
        with_size[at + 24 : at + 28] = (0xFFFFFFF0).to_bytes(4, "little")
        at = with_size.rfind(b"PK\1\2", 0, at)
        with_size[at + 24 : at + 28] = (0xFFFFFFF0).to_bytes(4, "little")
        return bytes(with_size)

    with pytest.raises(AgentRefused, match="larger than any runtime"):
        place(device, make(GOOD, edit=lie))
    assert none_is_there(device)


@pytest.mark.parametrize("edit", [lambda b: b[: len(b) // 2], lambda b: b"not a zip at all"])
def test_what_is_no_archive_is_said(edit: object, device: Device, make: Make) -> None:
    with pytest.raises(AgentRefused, match="cannot be unpacked") as caught:
        place(device, make(GOOD, edit=edit))
    assert caught.value.kind == "damaged" and none_is_there(device)


@pytest.mark.parametrize("victim", ["part/module.py", "compiled", "missing"])
def test_damage_is_found_and_repaired(victim: str, device: Device, make: Make) -> None:
    runtime = make(GOOD)
    folder = place(device, runtime)
    before = (folder / "part" / "module.py").read_bytes()
    (pyc,) = folder.glob("part/__pycache__/module*.pyc")
    path = pyc if victim == "compiled" else folder / "part" / "module.py"
    if victim == "missing":
        path.unlink()
    else:
        path.chmod(0o600)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(bytes(data))
    problem, *_ = device.status(verify=True).unused_problems
    assert path.name in problem, "nothing is active"
    assert place(device, runtime) == folder
    assert device.status(verify=True).unused_problems == ()
    assert (folder / "part" / "module.py").read_bytes() == before
    assert pyc.read_bytes() != bytes(0)


def test_a_damaged_archive_in_the_store_is_sent_again(device: Device, make: Make) -> None:
    runtime = make(GOOD)
    place(device, runtime)
    (archive,) = runtime.archives
    blob = Path(device.channel.root) / "store" / "sha256" / archive.sha256[:2] / archive.sha256
    blob.chmod(0o600)
    data = bytearray(blob.read_bytes())
    data[40] ^= 4
    blob.write_bytes(bytes(data))
    place(device, runtime)
    assert hashlib.sha256(blob.read_bytes()).hexdigest() == archive.sha256


def test_room_to_unpack_is_asked_for_before_anything_is_sent(device: Device, make: Make) -> None:
    runtime = make(GOOD)
    (archive,) = runtime.archives
    large = dataclasses.replace(archive, unpacked_bytes=1 << 50)
    with pytest.raises(DeviceError, match=r"MB are needed and .* MB are free"):
        place(device, dataclasses.replace(runtime, archives=(large,)))
    assert not list((Path(device.channel.root) / "store" / "incoming").glob("*/*"))


def test_gc_keeps_the_archives_of_what_is_active(device: Device, make: Make) -> None:
    runtime = make(GOOD)
    place(device, runtime)
    store = Path(device.channel.root) / "store" / "sha256"
    assert runtime.archives[0].sha256 in os.listdir(store / runtime.archives[0].sha256[:2])
    assert device.gc() > 0, "nothing is active"
    assert none_is_there(device) and not list(store.glob("*/*"))
