"""What decides which files a device can run: architecture, glibc, Python and CPU features."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.errors import UsageError
from edgekit.targets.agent import agent as device_agent
from edgekit.targets.profile import Profile, version
from edgekit.types import DeviceFacts

#: manylinux wheels exist for glibc 2.5 and later; those in use start here.
_OLDEST_GLIBC_MINOR = 17


@dataclass(frozen=True, slots=True)
class Abi:
    """What files must be made for to run on a device.

    Attributes:
        arch: machine name of its programs, as in ``uname -m``.
        python: version of the interpreter that runs the agent, such as ``3.11``; empty if unknown.
        glibc: version of its C library, such as ``2.36``; empty if unknown, or if it has another.
        cpu_features: as its kernel lists them; empty if unknown.
        host: whether that interpreter is the very one that runs edgekit, whose own packages serve.
    """

    arch: str
    python: str = ""
    glibc: str = ""
    cpu_features: tuple[str, ...] = ()
    host: bool = False

    @property
    def platforms(self) -> list[str]:
        """The platform tags of wheels that fit, newest first (PEP 600)."""
        newest = version(self.glibc or "2.17")
        if newest[:1] != (2,) or len(newest) < 2:
            return []
        names = [
            f"manylinux_2_{minor}_{self.arch}"
            for minor in range(newest[1], _OLDEST_GLIBC_MINOR - 1, -1)
        ]
        return [*names, f"manylinux2014_{self.arch}"] if names else []


def host_abi() -> Abi:
    """That of the interpreter that runs edgekit."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (OSError, ValueError):
        libc = ""
    return Abi(os.uname().machine, python, _glibc(libc), host=True)


def device_abi(facts: DeviceFacts, interpreter: object = None) -> Abi:
    """That of a connected device.

    Args:
        facts: what it says about itself.
        interpreter: what the agent says of the interpreter that runs it.
    """
    own = device_agent.interpreter()
    same = bool(own["boot"]) and isinstance(interpreter, Mapping) and dict(interpreter) == own
    return Abi(facts.arch, _major_minor(facts.python), _glibc(facts.libc), facts.cpu_features, same)


def profile_abi(profile: Profile, python: str = "") -> Abi:
    """That of devices of a kind, without asking one.

    Raises:
        UsageError: the profile does not say enough, or ``python`` is no version.
    """
    if python and not re.fullmatch(r"3\.\d{1,2}", python):
        raise UsageError(f"{python!r} is not a version of Python such as 3.11.")
    if not profile.arch:
        raise UsageError(
            f"The profile {profile.name} fits any device, so it does not say what is needed.",
            remedy="Name a target that can be reached, or one with another profile.",
        )
    return Abi(
        profile.arch, python or _major_minor(profile.python), profile.glibc, profile.cpu_features
    )


def required_glibc(data: bytes) -> str:
    """The newest version of glibc that a program or shared library names; empty for none."""
    found = {match.group(1).decode() for match in re.finditer(rb"\0GLIBC_(2\.\d+)(?=[\0.])", data)}
    return max(found, key=version, default="")


def _glibc(libc: str) -> str:
    # No more digits: there is one platform tag for each minor version.
    match = re.fullmatch(r"glibc ([0-9]{1,3}\.[0-9]{1,3})(?![0-9])\S*", libc.strip())
    return match.group(1) if match else ""


def _major_minor(python: str) -> str:
    return ".".join(python.split(".")[:2])
