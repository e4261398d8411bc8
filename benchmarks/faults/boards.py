"""Devices to cut: this machine behind namespaces of its own, with an address, processes and a disk.

Everything that such a device mounts, runs and is connected by ends with its first process. All that
the host has mounted is in its sight, read-only; only its disk, a small file system in memory, can
be written to, so that a write outside it fails. Of /proc, what concerns single processes can be
written, too: programs set their own there.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import psutil

from benchmarks import sshd
from benchmarks.faults import inspector
from edgekit.targets.virtual.network import free_pair, link_name, make_link
from edgekit.types import Target

PORT = 2222
DISK_MB = 72
START_S = 20.0
NAME = "faults"

_FIRST = """
set -eu
read -r go
for path in /proc/sys /proc/sysrq-trigger; do
    [ ! -e "$path" ] || mount --bind "$path" "$path"
done
mountpoints=$(cut -d ' ' -f 5 /proc/self/mountinfo)
mount -t tmpfs -o size={size}m,mode=755 tmpfs {disk}
IFS='
'
for escaped in $mountpoints; do
    path=$(printf '%b' "$escaped")
    # What another mount covers is no mount point any more.
    [ "$path" = /proc ] || ! mountpoint -q "$path" || mount -o remount,bind,ro "$path"
done
ip link set lo up
ip address add {address} dev eth0
ip link set eth0 up
exec {sshd} -D -e -f {config}
"""


class Board(Protocol):
    """A device whose links, processes, disk or power can fail."""

    target: Target

    def cut(self, kind: str, rng: random.Random) -> None:
        """Lets it fail in one way."""
        ...

    def mend(self, kind: str) -> None:
        """Undoes what does not undo itself."""
        ...

    def inspect(self) -> dict[str, Any]:
        """What :mod:`benchmarks.faults.inspector` finds there."""
        ...

    def wipe(self) -> None:
        """Removes edgekit's folder."""
        ...


class NamespaceBoard:
    """This machine's kernel and programs as a device with an sshd of its own; needs root."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._disk = folder / "disk"
        self._disk.mkdir(parents=True)
        self._link = link_name(NAME, folder)
        near, far = free_pair(NAME, folder)
        self._near, self._host = near, far.partition("/")[0]
        server = sshd.program()
        if server is None:
            raise RuntimeError("There is no sshd here: install openssh-server.")
        config = sshd.configure(folder / "sshd", f"{self._host}:{PORT}")
        script = _FIRST.format(
            size=DISK_MB, disk=self._disk, address=far, sshd=server, config=config
        )
        with open(folder / "sshd" / "log", "wb") as log:
            self._unshare = subprocess.Popen(
                ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
                 "/bin/sh", "-c", script],
                stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            self.pid = self._first()
            make_link(self._link, near, self.pid)
            assert self._unshare.stdin is not None
            self._unshare.stdin.write(b"go\n")
            self._unshare.stdin.close()
            self._wait_for_ssh()
        except BaseException:
            self.stop()
            raise
        self._root = self._disk / "edgekit"
        (self._inside(self._disk) / "neighbour").write_bytes(os.urandom(1000))
        self.target = Target(
            NAME,
            "ssh",
            f"ssh://{self._user()}@{self._host}:{PORT}",
            str(self._root),
            options={
                "python": sys.executable,
                "identity": str(folder / "sshd" / "identity"),
                "connect_timeout_s": "3",
                "link_timeout_s": "2",
                "reconnect_s": "4",
            },
        )

    @property
    def known_hosts_line(self) -> str:
        key = (self._folder / "sshd" / "host_key.pub").read_text().split()[:2]
        return f"[{self._host}]:{PORT} {' '.join(key)}\n"

    @property
    def log(self) -> str:
        return (self._folder / "sshd" / "log").read_text(errors="replace")

    def cut(self, kind: str, rng: random.Random) -> None:
        if kind == "link down":
            self._ip("down")
        elif kind == "sshd killed":
            for process in self._children():
                with contextlib.suppress(psutil.Error):
                    if process.name().startswith("sshd"):
                        process.kill()
        elif kind == "reset":
            subprocess.run(
                ["ss", "-K", "dst", self._host, "dport", "=", str(PORT)],
                check=True, capture_output=True,
            )  # fmt: skip
        elif kind == "disk full":
            with contextlib.suppress(OSError), open(self._filler, "wb") as file:
                while True:
                    file.write(bytes(1 << 16))
                    file.flush()
        else:
            raise ValueError(kind)

    def mend(self, kind: str) -> None:
        if kind == "link down":
            self._ip("up")
        elif kind == "disk full":
            self._filler.unlink(missing_ok=True)

    def inspect(self) -> dict[str, Any]:
        done = subprocess.run(
            ["nsenter", "--target", str(self.pid), "--mount", "--pid", sys.executable, "-I", "-S",
             inspector.__file__, str(self._root)],
            capture_output=True, check=True, timeout=60,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(done.stdout)
        found["beside"].pop(str(self._disk / "filler"), None)
        found["processes"] = []
        for process in self._children():
            with contextlib.suppress(psutil.Error):
                if not process.name().startswith("sshd") and (
                    process.status() != psutil.STATUS_ZOMBIE
                ):
                    found["processes"].append(" ".join(process.cmdline())[:200])
        return found

    def wipe(self) -> None:
        subprocess.run(["rm", "-rf", str(self._inside(self._root))], check=True)

    def opening(self) -> int:
        """How many connections are being opened: those that have not logged in yet."""
        count = 0
        for process in self._children():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                count += "[accepted]" in line or "[preauth]" in line
        return count

    def stop(self) -> None:
        if self._unshare.poll() is None:
            os.killpg(self._unshare.pid, signal.SIGKILL)
        self._unshare.wait()

    @property
    def _filler(self) -> Path:
        return self._inside(self._disk) / "filler"

    def _inside(self, path: Path) -> Path:
        """A path of the device's, seen from here."""
        return Path(f"/proc/{self.pid}/root{path}")

    def _children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def _ip(self, state: str) -> None:
        subprocess.run(["ip", "link", "set", self._link, state], check=True)

    @staticmethod
    def _user() -> str:
        return "root"

    def _first(self) -> int:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._unshare.poll() is None:
            children = psutil.Process(self._unshare.pid).children()
            if children:
                return int(children[0].pid)
            time.sleep(0.02)
        raise RuntimeError(f"The namespaces cannot be made: {self.log}")

    def _wait_for_ssh(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._unshare.poll() is None:
            with (
                contextlib.suppress(OSError),
                socket.create_connection((self._host, PORT), timeout=1) as wire,
            ):
                if wire.recv(4) == b"SSH-":
                    return
            time.sleep(0.05)
        raise RuntimeError(f"sshd does not answer: {self.log}")
