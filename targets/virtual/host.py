"""What this machine must have to emulate a device, and whether it has it."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgekit.errors import DeviceError, UsageError

#: program -> the Debian package that brings it
PACKAGES = {
    "gcc": "gcc",
    "ip": "iproute2",
    "ldd": "libc-bin",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "newuidmap": "uidmap",
    "qemu-aarch64": "qemu-user",
    "qemu-aarch64-static": "qemu-user-static",
    "qemu-system-aarch64": "qemu-system-arm",
    "ssh-keygen": "openssh-client",
    "unshare": "util-linux",
}
#: Programs of the administrator are often not on a user's PATH.
_PATH = os.pathsep.join(("/usr/sbin", "/sbin", "/usr/local/sbin"))


def find(program: str) -> str | None:
    """Where a program is, or None."""
    return shutil.which(program, path=os.environ.get("PATH", os.defpath) + os.pathsep + _PATH)


def require(*programs: str) -> dict[str, str]:
    """Where each of these programs is.

    Raises:
        UsageError: some are missing; names the packages.
    """
    found = {program: find(program) for program in programs}
    if missing := [program for program, path in found.items() if path is None]:
        packages = " ".join(sorted({PACKAGES[program] for program in missing}))
        raise UsageError(
            f"Emulated devices need {', '.join(missing)}, which this machine has not.",
            remedy=f"On Debian and Ubuntu: sudo apt-get install {packages}",
        )
    return {program: str(path) for program, path in found.items()}


def is_root() -> bool:
    """Whether this process may give a device a network of its own."""
    return os.geteuid() == 0


def id_maps() -> tuple[str, str]:
    """The users and groups that exist inside a device, as lines of uid_map and gid_map.

    Root keeps all numbers. Everybody else is root inside, and lends the range that /etc/subuid and
    /etc/subgid give them to the other users there.

    Raises:
        UsageError: no such range is given.
    """
    if is_root():
        return _identity("uid_map"), _identity("gid_map")
    return (
        f"0 {os.geteuid()} 1\n1 {_range('/etc/subuid')}",
        f"0 {os.getegid()} 1\n1 {_range('/etc/subgid')}",
    )


def _identity(kind: str) -> str:
    lines = [line.split() for line in Path("/proc/self", kind).read_text().splitlines()]
    return "\n".join(f"{first} {first} {count}" for first, _, count in lines)


def _range(file: str) -> str:
    """The first range of the current user, as ``START COUNT``."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    with open(file, encoding="utf-8") if os.path.exists(file) else open(os.devnull) as lines:
        for line in lines:
            owner, _, numbers = line.strip().partition(":")
            if owner in (user, str(os.geteuid())):
                return numbers.replace(":", " ")
    raise UsageError(
        f"{file} lends {user} no range of numbers, which the users inside a device need.",
        remedy=f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
    )


def set_id_maps(pid: int) -> None:
    """Gives the user namespace of a process its users and groups.

    Raises:
        UsageError: as in :func:`id_maps`.
        DeviceError: the kernel refuses.
    """
    users, groups = id_maps()
    try:
        if is_root():
            Path(f"/proc/{pid}/uid_map").write_text(users)
            Path(f"/proc/{pid}/gid_map").write_text(groups)
        else:
            for program, lines in (("newuidmap", users), ("newgidmap", groups)):
                command = [program, str(pid), *lines.split()]
                subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", "") or error
        raise DeviceError(
            f"The users inside the device cannot be set up: {str(why).strip()}.",
            remedy="Look at /etc/subuid and /etc/subgid, or run it as root.",
        ) from error


def emulator() -> str:
    """The statically linked qemu-aarch64: inside a device there are no libraries for it.

    Raises:
        UsageError: there is none.
    """
    for program in ("qemu-aarch64-static", "qemu-aarch64"):
        path = find(program)
        if path is not None and not _needs_libraries(path):
            return path
    return require("qemu-aarch64-static")["qemu-aarch64-static"]


def _needs_libraries(program: str) -> bool:
    """Whether a program names a loader, which stands near its beginning."""
    with open(program, "rb") as file:
        return b"/ld-linux" in file.read(4096)


def run_tool(command: Sequence[str], *, what: str) -> str:
    """Runs a program of this machine to its end; returns what it wrote.

    Raises:
        DeviceError: it failed; ``what`` says what for.
    """
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        why = lines[-1] if lines else f"exit code {done.returncode}"
        raise DeviceError(f"{what} failed: {Path(command[0]).name}: {why}")
    return done.stdout
