"""Kinds of devices, one TOML file each: what they need and how to probe them."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from edgekit.errors import UsageError
from edgekit.suggest import did_you_mean
from edgekit.types import DeviceFacts

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
        threads: thread counts worth probing.
        max_temp_c: a measurement waits until the device is cooler; 0 for no gate.
        cool_down_s: it waits at most so long, before every process.
        fps_mode: what a rate in frames per second means there: ``sustained``, after the device has
            warmed up, for boards that slow down when they are hot; else ``burst``.
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
    fps_mode: str = "burst"
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
    for key in ("cpu_features", "threads"):
        document[key] = tuple(document.get(key, ()))
    return Profile(name=name, **document)


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
    return tuple(int(part) for part in re.findall(r"\d+", text))
