"""The root file system of an emulated device: Debian's own arm64 packages, as one cached tar file.

The packages are unpacked and not configured, so no foreign program runs while it is made: that
takes seconds of this machine's time instead of minutes of an emulator's, needs no emulator, and
gives the same files every time. What configuring would have written is in :mod:`.layout`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from edgekit.errors import DeviceError, UsageError
from edgekit.progress import Progress
from edgekit.targets.virtual.boards import System
from edgekit.targets.virtual.host import is_root, require
from edgekit.targets.virtual.state import locked

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_UNUSED = ("doc", "info", "lintian", "locale", "man")
#: Raise it when what is made from the same packages changes.
_RECIPE = 1
_STOP_S = 20.0


def rootfs(system: System, home: Path, progress: Progress, *, mirror: str = "") -> Path:
    """The tar file of a system, made once and kept.

    Args:
        system: which release and packages.
        home: where it is kept.
        progress: told of every step.
        mirror: a mirror of Debian's to use instead of the system's.

    Raises:
        UsageError: mmdebstrap or the archive's keys are missing.
        DeviceError: it could not be made; says why.
    """
    digest = fingerprint(_RECIPE, system.name, system.packages, mirror)
    path = home / "rootfs" / f"{system.name}-arm64-{digest}.tar"
    if path.exists():
        return path
    with locked(path.with_suffix(".lock")):
        if not path.exists():  # else made by somebody else meanwhile
            what = f"Make the root file system of {system.label}, once"
            unpack(system, system.packages, path, progress, what=what, mirror=mirror)
    return path


def fingerprint(*parts: object) -> str:
    """A short name for what is made of these parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def unpack(
    system: System,
    packages: Sequence[str],
    path: Path,
    progress: Progress,
    *,
    what: str,
    mirror: str = "",
) -> None:
    """Makes a tar file of packages and all that they depend on; whole or not at all.

    Whoever calls holds a lock for ``path``. Raises as :func:`rootfs`.
    """
    tool = require("mmdebstrap")["mmdebstrap"]
    if not _KEYRING.exists():
        raise UsageError(
            f"{_KEYRING} is missing, by which packages of Debian are checked.",
            remedy="sudo apt-get install debian-archive-keyring",
        )
    for left in path.parent.glob(f".{path.stem}.*"):
        left.unlink()  # by one who was killed: we hold the lock
    # mmdebstrap tells by the extension what to make.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tar")
    try:
        command = _command(tool, system, packages, mirror or system.mirror, temporary)
        with progress.stage(what) as stage:
            _run(command, what, lambda note: stage.advance(note=note))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _command(
    tool: str, system: System, packages: Sequence[str], mirror: str, path: Path
) -> list[str]:
    unused = " ".join(f'"$1/usr/share/{name}"' for name in _UNUSED)
    return [
        tool,
        f"--mode={'root' if is_root() else 'unshare'}",
        "--architectures=arm64",
        "--variant=extract",
        "--skip=check/qemu",
        f"--include={','.join(packages)}",
        f"--keyring={_KEYRING}",
        '--aptopt=Acquire::Languages "none"',
        "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
        f"--customize-hook=rm -rf {unused}",
        system.name,
        str(path),
        mirror,
    ]


def _run(command: Sequence[str], what: str, note: Callable[[str], None]) -> None:
    last: deque[str] = deque(maxlen=5)
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            last.append(line.strip())
            if line.startswith("I: "):
                note(line.removeprefix("I: ").strip().rstrip("."))
        code = process.wait()
    except BaseException:
        # It removes its own temporary folder when it is asked to end.
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        process.kill()
        raise
    if code:
        said = "; ".join(line for line in last if line.startswith(("E:", "W:"))) or "; ".join(last)
        raise DeviceError(
            f"{what}: mmdebstrap failed: {said}",
            remedy="Is Debian's mirror within reach? --mirror URL names another one.",
        )
