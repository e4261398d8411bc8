"""What devices need, brought to this machine beforehand: for a bench without internet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekit import registry
from edgekit.errors import DeviceError, EdgekitError, UsageError
from edgekit.progress import Progress
from edgekit.suggest import did_you_mean
from edgekit.targets import executorch_runner, runtimes, wheels
from edgekit.targets.abi import Abi, host_abi, profile_abi
from edgekit.targets.device import connect
from edgekit.targets.profile import load_profile
from edgekit.types import Target

#: What a program that was compiled on Debian 12 needs, and all profiles have.
BUILT_FOR = "2.34"


@dataclass(frozen=True, slots=True)
class Supply:
    """What a runtime takes on one kind of device.

    Attributes:
        runtime: its name in the registry.
        version: of the runtime; empty where there is none for the device.
        device: the kind of device, such as ``aarch64, Python 3.11``.
        size_bytes: of the files that are fetched; 0 for this machine's own packages.
        cached: whether they are here.
        message: why there is none; empty where there is.
        remedy: what to do about that.
    """

    runtime: str
    version: str
    device: str
    size_bytes: int
    cached: bool
    message: str = ""
    remedy: str = ""


def abis_of(target: Target, pythons: Sequence[str], *, progress: Progress) -> list[Abi]:
    """What the files must be made for.

    Args:
        target: it is asked, unless ``pythons`` are given; a target that cannot be reached is taken
            for what its profile says.
        pythons: versions of Python to assume there, such as ``3.11``.

    Raises:
        UsageError: the target has no profile, where one is needed.
        DeviceError: it cannot be reached, and has no profile.
    """
    if target.transport == "local" and not pythons:
        return [host_abi()]
    if pythons:
        if not target.profile:
            raise UsageError(
                f"{target.name} has no profile, so --python alone does not say what it is.",
                remedy="Leave --python out, so that the device is asked.",
            )
        return [profile_abi(load_profile(target.profile), python) for python in pythons]
    try:
        with connect(replace(target, profile=""), progress=progress) as device:
            return [device.abi()]
    except DeviceError as error:
        if not target.profile:
            raise
        abi = profile_abi(load_profile(target.profile))
        progress.log(
            f"{error.message} Going on with what the profile {target.profile} says: {named(abi)}; "
            "--python names another version."
        )
        return [abi]


def named(abi: Abi) -> str:
    """A kind of device, for people."""
    return "this machine" if abi.host else f"{abi.arch}, Python {abi.python}"


def chosen(names: Sequence[str] | None) -> list[str]:
    """The runtimes of these names; without any, all.

    Raises:
        UsageError: there is none of a name.
    """
    known = list(registry.runtimes())
    for name in names or ():
        if name not in known:
            raise UsageError(
                f"There is no runtime {name!r}.",
                remedy=did_you_mean(name, known) or f"Known: {', '.join(known)}.",
            )
    return list(names or known)


def survey(names: Sequence[str], abis: Sequence[Abi], cache: Path) -> list[Supply]:
    """What there is and what is here; asks nobody."""
    return [_surveyed(name, abi, cache) for abi in abis for name in names]


def _surveyed(name: str, abi: Abi, cache: Path) -> Supply:
    if abi.host:
        try:
            return Supply(
                name, runtimes.resolve(name, abi, cache=cache).version, named(abi), 0, True
            )
        except EdgekitError as error:
            return Supply(name, "", named(abi), 0, False, error.message, error.remedy)
    try:
        files = runtimes.needed_wheels(name, abi)
    except DeviceError as error:
        return Supply(name, "", named(abi), 0, False, error.message, error.remedy)
    here = all(wheels.cached(wheel, cache) for wheel in files)
    size = sum(wheel.size_bytes for wheel in files)
    return Supply(name, files[0].package.partition("==")[2], named(abi), size, here)


def fill(
    names: Sequence[str], abis: Sequence[Abi], cache: Path, *, progress: Progress
) -> list[Supply]:
    """Brings everything into the cache that a deploy would have to fetch or build."""
    done = []
    for abi in abis:
        for name in names:
            try:
                runtimes.resolve(name, abi, cache=cache, progress=progress)
                done.append(_surveyed(name, abi, cache))
            except EdgekitError as error:
                found = _surveyed(name, abi, cache)
                done.append(replace(found, message=error.message, remedy=error.remedy))
    return done


def build(arch: str, folder: Path | None, cache: Path, *, progress: Progress) -> Path:
    """Compiles ExecuTorch's runner for edgekit's own wheel; returns the file.

    Args:
        arch: machine name, as in ``uname -m``.
        folder: it goes to ``<folder>/<arch>/``; default: where a wheel is built from.

    Raises:
        DeviceError: there is no compiler or no executorch for ``arch``.
    """
    host = host_abi()
    abi = host if arch == host.arch else Abi(arch, glibc=BUILT_FOR)
    version, package = runtimes.executorch_package(abi, cache, progress, "")
    return executorch_runner.release_runner(
        package, version, arch, folder or executorch_runner.BUILT
    )
