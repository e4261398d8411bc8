"""A whole emulated machine as the device: when its power fails, what was not synced is lost."""

from __future__ import annotations

import json
import random
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.faults import inspector
from edgekit.targets.abi import Abi, device_abi
from edgekit.targets.device import connect
from edgekit.targets.virtual import vm
from edgekit.targets.virtual.devices import boot, start, stop

POWER_OFF = "power off"
DISK = "/home/pi/disk"
#: Where its user may write, beside its disk.
OTHERS = ("/home/pi", "/tmp", "/var/tmp")
COMMAND_S = 300.0


class MachineBoard:
    """An emulated Raspberry Pi 4 with a kernel, a disk and a plug of its own.

    Args:
        folder: for the machine.
        packages: the folder in which packages of emulated systems are kept between runs.
    """

    def __init__(self, folder: Path, packages: Path) -> None:
        packages.mkdir(parents=True, exist_ok=True)
        self._home = folder / "virtual"
        self._home.mkdir(parents=True)
        (self._home / "rootfs").symlink_to(packages)
        self._machine = start("rpi4", "bookworm", "vm", home=self._home)
        reached = self._machine.target()
        limits = {"connect_timeout_s": "20", "link_timeout_s": "20", "reconnect_s": "1"}
        self._root = f"{DISK}/edgekit"
        self.target = replace(reached, workdir=self._root, options={**reached.options, **limits})
        self._run("mkdir", DISK)
        self._run("dd", "if=/dev/urandom", f"of={DISK}/neighbour", "bs=1000", "count=1")
        self._run("sync")

    @property
    def abi(self) -> Abi:
        """What its programs must be made for."""
        with connect(self.target) as device:
            return device_abi(device.facts())

    def cut(self, kind: str, rng: random.Random) -> None:
        if kind != POWER_OFF:
            raise ValueError(kind)
        vm.power_off(self._machine)

    def mend(self, kind: str) -> None:
        if kind == POWER_OFF and not self._machine.running:
            self._machine = boot(self._machine, COMMAND_S)

    def inspect(self) -> dict[str, Any]:
        program = Path(inspector.__file__).read_bytes()
        done = self._run("python3", "-I", "-S", "-", self._root, *OTHERS, stdin=program)
        found: dict[str, Any] = json.loads(done)
        return found

    def wipe(self) -> None:
        self._run("rm", "-rf", self._root)

    def stop(self) -> None:
        stop(self._machine.name, self._home)

    def _run(self, *words: str, stdin: bytes = b"") -> bytes:
        """Runs a command there, by OpenSSH's own client."""
        ssh = [
            "ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "ConnectTimeout=60",
            "-o", f"UserKnownHostsFile={self._machine.known_hosts}",
            "-i", str(self._machine.identity), "-p", str(self._machine.port),
            f"{self._machine.user}@{self._machine.host}",
        ]  # fmt: skip
        command: Sequence[str] = [*ssh, shlex.join(words)]
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=COMMAND_S)
        if done.returncode != 0:
            raise RuntimeError(f"{words[0]} on the machine: {done.stderr.decode()[-500:]}")
        return done.stdout
