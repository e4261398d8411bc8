"""Devices that cannot be used are told before anything is sent, with the reason and the remedy."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sshd
from benchmarks.sshd import Server
from edgekit.errors import DeviceError
from edgekit.targets.device import connect
from edgekit.targets.facts import parse_facts
from edgekit.targets.profile import unfit
from edgekit.types import DeviceFacts
from tests.targets.conftest import local_target
from tests.targets.ssh_tools import target_of

RECORDED = Path(__file__).resolve().parent / "recorded"


def facts(**changes: Any) -> DeviceFacts:
    known = parse_facts(json.loads((RECORDED / "rpi4.json").read_text())["raw"])
    return dataclasses.replace(known, **changes)


@pytest.mark.parametrize(
    ("changes", "text", "remedy"),
    [
        (
            {"arch": "armv7l"},
            "32-bit ARM (armv7l, under a 64-bit kernel)",
            "Raspberry Pi OS 64-bit",
        ),
        ({"arch": "armv6l", "kernel": "6.6.31+rpt-rpi-v6"}, "32-bit ARM (armv6l), and", "64-bit"),
        ({"arch": "riscv64"}, "architecture is riscv64", "aarch64"),
        ({"libc": "musl"}, "C library is musl", "glibc"),
        ({"libc": "glibc 2.24"}, "glibc is 2.24", "bookworm"),
    ],
)
def test_what_no_runtime_runs_on(changes: dict[str, str], text: str, remedy: str) -> None:
    why = unfit(facts(**changes))
    assert why is not None and text in why[0] and remedy in why[1]


def test_a_raspberry_pi_4_is_fit() -> None:
    assert unfit(facts()) is None and unfit(facts(libc="glibc 2.31", arch="x86_64")) is None


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 64 kB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tiny", str(folder)])
    assert mounted.returncode == 0, "making a small disk needs root"
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_said(tiny: Path) -> None:
    (tiny / "full").write_bytes(bytes(60 * 1024))
    with pytest.raises(DeviceError, match="full disk") as caught:
        connect(local_target(tiny / "root"))
    assert caught.value.exit_code == 4 and "workdir" in caught.value.remedy
    assert not list(tiny.glob("root/agent/*")), "nothing half-written stays"


def test_a_read_only_disk_is_said(tiny: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(tiny)], check=True)
    with pytest.raises(DeviceError, match="read-only file system") as caught:
        connect(local_target(tiny / "root"))
    assert caught.value.exit_code == 4 and "remount,rw" in caught.value.remedy


def test_a_disk_that_turned_read_only_is_said(tmp_path: Path) -> None:
    """The agent is there already; the folder is bound read-only over itself."""
    root = tmp_path / "root"
    device = connect(local_target(root))
    bind = [
        ["mount", "--bind", str(root), str(root)],
        ["mount", "-o", "remount,ro,bind", str(root)],
    ]
    for command in bind:
        subprocess.run(command, check=True)
    try:
        with pytest.raises(DeviceError, match=os.strerror(errno.EROFS)) as caught:
            device.gc()
        assert "remount,rw" in caught.value.remedy
    finally:
        subprocess.run(["umount", str(root)], check=True)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    running = sshd.start(tmp_path / "sshd")
    (tmp_path / ".ssh").mkdir(mode=0o700)
    (tmp_path / ".ssh" / "known_hosts").write_text(running.known_hosts_line)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    yield running
    running.stop()


def test_a_folder_that_cannot_be_made_is_said(server: Server) -> None:
    target = target_of(server)
    with pytest.raises(DeviceError, match="edgekit's folder /proc/root"):
        connect(dataclasses.replace(target, workdir="/proc/root"))


def test_no_python_is_said(server: Server) -> None:
    with pytest.raises(DeviceError, match="there is no python7 on the device") as caught:
        connect(target_of(server, python="python7"))
    assert "apt-get install python3" in caught.value.remedy and caught.value.exit_code == 4


def test_a_python_that_does_not_understand_us_is_said(tmp_path: Path, server: Server) -> None:
    """What Python 3.6 prints; none so old runs here."""
    old = script(
        tmp_path, 'echo "SyntaxError: future feature annotations is not defined" >&2; exit 1'
    )
    with pytest.raises(DeviceError, match="too old") as caught:
        connect(target_of(server, python=old))
    assert "3.9 or later" in caught.value.remedy


def test_a_python_before_3_9_is_said(tmp_path: Path) -> None:
    old = script(tmp_path, """echo '{"root": "/x", "agent": "", "python": [3, 8]}'""")
    with pytest.raises(DeviceError, match=r"is version \[3, 8\]; the agent needs 3\.9"):
        connect(local_target(tmp_path / "root", python=old))


def script(folder: Path, text: str) -> str:
    path = folder / "python-old"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)
