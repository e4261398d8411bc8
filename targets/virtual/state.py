"""What is known about emulated devices between two commands: a folder and a file for each.

Whether one still runs is asked of the kernel, not of the file: after a crash of the host the file
is there and the process is not, or its number is somebody else's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from edgekit.errors import DeviceError, UsageError
from edgekit.files import write_atomic
from edgekit.targets.runtimes import cache_dir
from edgekit.targets.virtual.boards import KINDS, Kind
from edgekit.types import Target

_STATE = "state.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class VirtualDevice:
    """An emulated device.

    Attributes:
        name: also of its target.
        board: see :data:`edgekit.targets.virtual.boards.BOARDS`.
        system: see :data:`edgekit.targets.virtual.boards.SYSTEMS`.
        kind: ``user`` or ``vm``.
        folder: everything of it; gone when it is stopped.
        host: address of its SSH server.
        port: of its SSH server.
        user: who logs in by default; ``root`` may, with the same key.
        pid: of the process that all others of it end with; 0 while it has none.
        born: when that began, which tells it from a later process of the same number.
        started_utc: when it was started, as 2026-01-31T12:00:00Z.
    """

    name: str
    board: str
    system: str
    kind: Kind
    folder: Path
    host: str
    port: int
    user: str
    pid: int
    born: str
    started_utc: str

    @property
    def address(self) -> str:
        return f"ssh://{self.user}@{self.host}:{self.port}"

    @property
    def identity(self) -> Path:
        """The private key that it lets in."""
        return self.folder / "identity"

    @property
    def known_hosts(self) -> Path:
        """Holds its host key, and no other."""
        return self.folder / "known_hosts"

    @property
    def log(self) -> Path:
        """What its console says."""
        return self.folder / "log"

    @property
    def running(self) -> bool:
        """Whether its process is there; SSH may not answer yet."""
        return self.pid > 0 and birth(self.pid) == self.born

    def target(self, *, user: str = "", profile: str = "") -> Target:
        """The SSH target that reaches it, which needs no file of the user's.

        ``user`` logs in as somebody else; ``profile`` is what it is held against.
        """
        address = replace(self, user=user).address if user else self.address
        options = {
            "identity": str(self.identity),
            "known_hosts": str(self.known_hosts),
            "jump": "none",
        }
        return Target(self.name, "ssh", address, profile=profile, options=options)


def home_dir() -> Path:
    """Where emulated devices and what they are made of lie."""
    return cache_dir() / "virtual"


def device_folder(home: Path, name: str) -> Path:
    """The folder of a device, which need not exist.

    Raises:
        UsageError: that is no name of one.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name of an emulated device.",
            remedy="Such names have small letters, digits and hyphens.",
        )
    return home / "devices" / name


def birth(pid: int) -> str:
    """What no other process of this number has, after a reboot either; empty for none."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (OSError, UnicodeDecodeError):
        return ""
    # The second field is the program's name in parentheses, which may hold anything.
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def save(device: VirtualDevice) -> None:
    """Writes a device's state into its folder."""
    document = {"schema": _SCHEMA, **asdict(device)}
    del document["folder"]
    write_atomic(device.folder / _STATE, json.dumps(document, indent=2).encode())


def read(home: Path, name: str) -> VirtualDevice | None:
    """The device of this name, running or not; None where there is none.

    Raises:
        UsageError: that is no name of one.
        DeviceError: its state cannot be read.
    """
    folder = device_folder(home, name)
    try:
        document = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        if document.pop("schema") != _SCHEMA or document["kind"] not in KINDS:
            raise ValueError("it is of another version of edgekit")
        return VirtualDevice(folder=folder, **document)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DeviceError(
            f"{folder / _STATE} cannot be read: {error}.",
            remedy=f"edgekit virtual stop {name}",
        ) from error


def names(home: Path) -> list[str]:
    """The devices that there are, running or not; also those that did not come up whole."""
    folder = home / "devices"
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in found if path.is_dir() and _NAME.fullmatch(path.name))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file that is given back by whoever dies; waits for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
