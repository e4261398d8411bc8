"""Kinds of devices, one TOML file each: what they need and how to probe them."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from edgekit.errors import UsageError
from edgekit.suggest import did_you_mean
from edgekit.types import DeviceFacts, FpsMode

_FOLDER = Path(__file__).resolve().parent / "profiles"


@dataclass(frozen=True, slots=True)
class Profile:
    """A kind of device.

    Attributes:
        name: the file's name without extension.
        description: one line for people.
        arch: machine name as in ``uname -m``; empty for any.
        glibc: the oldest glibc that the runtimes need; empty for any.
        cpu_features: features that the kernel must list.
        python: the oldest Python that the agent and the runners need.
        threads: thread counts worth probing, where nobody names others.
        max_temp_c: a measurement waits until the device is cooler; 0 for no gate.
        cool_down_s: it waits at most so long, before every process.
        fps_mode: what a rate in frames per second means there (:func:`edgekit.stats.frame_rate`):
            ``sustained`` for boards that slow down when they are hot, else ``burst``.
        host: the name under which such a device is usually found in its network; empty for none.
    """

    name: str
    description: str
    arch: str = ""
    glibc: str = ""
    cpu_features: tuple[str, ...] = ()
    python: str = "3.9"
    threads: tuple[int, ...] = (1, 2)
    max_temp_c: float = 0.0
    cool_down_s: float = 0.0
    fps_mode: FpsMode = "burst"
    host: str = ""


def names() -> tuple[str, ...]:
    """The profiles that there are."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load_profile(name: str) -> Profile:
    """The profile of this name.

    Raises:
        UsageError: there is none.
    """
    known = names()
    if name not in known:
        raise UsageError(
            f"Unknown device profile {name!r}.",
            remedy=f"{did_you_mean(name, known)} Known: {', '.join(known)}.".strip(),
        )
    document = tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    assert set(document) <= {field.name for field in fields(Profile)}
    lists = {key: tuple(value) for key, value in document.items() if isinstance(value, list)}
    return Profile(name=name, **{**document, **lists})


def thread_counts(profile: Profile | None, facts: DeviceFacts) -> tuple[int, ...]:
    """The thread counts worth probing on a device, of its profile or of any: none beyond its CPUs,
    and at least one."""
    wanted = profile.threads if profile else Profile("", "").threads
    return tuple(n for n in wanted if n <= facts.cpu_count) or (1,)


#: The wheels and libraries that the runtimes are made of name no older one (manylinux_2_27).
OLDEST_GLIBC = "2.27"


def unfit(facts: DeviceFacts) -> tuple[str, str] | None:
    """Why no runtime can run on a device, whatever its profile, and what to do; None where some
    may."""
    if facts.arch.startswith("arm"):
        kernel = "aarch64" in facts.kernel or "v8" in facts.kernel
        return (
            f"its programs are 32-bit ARM ({facts.arch}"
            f"{', under a 64-bit kernel' if kernel else ''}), and no runtime is built for that",
            "Install a 64-bit system there (Raspberry Pi OS 64-bit: Raspberry Pi 3, 4, 5, Zero 2).",
        )
    if facts.arch not in ("aarch64", "x86_64"):
        return (
            f"its architecture is {facts.arch or 'unknown'}, and no runtime is built for that",
            "Runtimes exist for 64-bit ARM (aarch64) and x86_64.",
        )
    if facts.libc == "musl":
        return (
            "its C library is musl, and the runtimes are built for glibc",
            "Use a system with glibc there, such as Raspberry Pi OS, Debian or Ubuntu.",
        )
    libc = re.fullmatch(r"glibc (\S+)", facts.libc)
    if libc and version(libc.group(1)) < version(OLDEST_GLIBC):
        return (
            f"its glibc is {libc.group(1)}, and the runtimes need {OLDEST_GLIBC} or later",
            "Update its system, e.g. to Raspberry Pi OS bookworm or later.",
        )
    return None


def misfits(profile: Profile, facts: DeviceFacts) -> list[str]:
    """Why a device cannot be of this kind; empty where it fits. What is unknown is no reason."""
    problems = []
    if profile.arch and facts.arch != profile.arch:
        problems.append(f"its architecture is {facts.arch}, not {profile.arch}")
    libc = re.fullmatch(r"glibc (\S+)", facts.libc)
    if profile.glibc and libc and version(libc.group(1)) < version(profile.glibc):
        problems.append(f"its glibc is {libc.group(1)}, older than {profile.glibc}")
    if facts.python and version(facts.python) < version(profile.python):
        problems.append(f"its Python is {facts.python}, older than {profile.python}")
    lacking = sorted(set(profile.cpu_features) - set(facts.cpu_features))
    if facts.cpu_features and lacking:
        problems.append(f"its CPU lacks {', '.join(lacking)}")
    return problems


def version(text: str) -> tuple[int, ...]:
    """``2.36`` as (2, 36), for comparing."""
    return tuple(int(part) for part in re.findall(r"[0-9]{1,9}", text))
