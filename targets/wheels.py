"""The wheels that runtimes are made of: chosen by a table, fetched with pip, kept by their hash."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import DeviceError
from edgekit.files import sha256_file
from edgekit.progress import Progress
from edgekit.targets.abi import Abi

TABLE = Path(__file__).resolve().parent / "wheels.toml"
LOCK = Path(__file__).resolve().parent / "wheels.json"
#: The largest wheel has 100 MB; slower lines than 60 kB/s fetch it themselves.
PIP_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class WheelSet:
    """Packages that make up a runtime on certain devices; a row of ``wheels.toml``."""

    runtime: str
    packages: tuple[str, ...]
    arch: tuple[str, ...]
    python: tuple[str, ...]

    @property
    def version(self) -> str:
        """The runtime's: that of the first package."""
        return self.packages[0].partition("==")[2]


@dataclass(frozen=True, slots=True)
class Wheel:
    """A published file; ``package`` is ``name==version``."""

    package: str
    filename: str
    sha256: str
    size_bytes: int


class CannotFetch(DeviceError):
    """pip could not bring a wheel that a device needs."""


@functools.cache
def table() -> tuple[WheelSet, ...]:
    """All sets, in order of preference."""
    rows = tomllib.loads(TABLE.read_text(encoding="utf-8"))["set"]
    return tuple(
        WheelSet(r["runtime"], tuple(r["packages"]), tuple(r["arch"]), tuple(r["python"]))
        for r in rows
    )


@functools.cache
def locked() -> tuple[Wheel, ...]:
    """All files that any set may need."""
    return tuple(Wheel(**row) for row in json.loads(LOCK.read_text(encoding="utf-8")))


def choose(runtime: str, abi: Abi) -> tuple[WheelSet, tuple[Wheel, ...]]:
    """The set for a device and its files.

    Raises:
        DeviceError: there is none; says what of the device does not fit.
    """
    rows = [row for row in table() if row.runtime == runtime]
    fitting = [row for row in rows if abi.arch in row.arch]
    if not fitting:
        known = sorted({arch for row in rows for arch in row.arch})
        raise DeviceError(
            f"No build of {runtime} for {abi.arch} is known, only for {', '.join(known)}.",
            remedy=_other_arch(abi.arch),
        )
    right = [row for row in fitting if abi.python in row.python]
    if not right:
        pythons = sorted({p for row in fitting for p in row.python}, key=lambda p: p.split("."))
        raise DeviceError(
            f"{runtime} is known to work with Python {', '.join(pythons)}; the device's is "
            f"{abi.python or 'unknown'}.",
            remedy="Install one of them there and name it in the target's option `python`, or use "
            "ExecuTorch, which needs none.",
        )
    missing: list[str] = []
    for row in right:
        found = [_fitting(package, abi) for package in row.packages]
        wheels = tuple(wheel for wheel in found if wheel is not None)
        if len(wheels) == len(row.packages):
            return row, wheels
        missing += [p for p, wheel in zip(row.packages, found, strict=True) if wheel is None]
    raise DeviceError(
        f"No wheel of {missing[0]} fits Python {abi.python} on {abi.arch} with glibc "
        f"{abi.glibc or 'unknown'}.",
        remedy="Update the device's system: these wheels need glibc 2.28 or later (Debian 10, "
        "Raspberry Pi OS buster)." if abi.glibc else "",
    )  # fmt: skip


def _other_arch(arch: str) -> str:
    if arch.startswith("arm"):
        return "Install a 64-bit system; the runtimes are not published for 32-bit ARM."
    if arch == "x86_64":
        return "What is published for x86_64 needs CUDA libraries; leave this runtime out."
    return ""


def _fitting(package: str, abi: Abi) -> Wheel | None:
    """The locked file of a package that a device can use; the best by pip's own order."""
    from packaging.tags import compatible_tags, cpython_tags
    from packaging.utils import parse_wheel_filename

    major, minor = (int(part) for part in abi.python.split("."))
    tags = [
        *cpython_tags((major, minor), platforms=abi.platforms),
        *compatible_tags((major, minor), f"cp{major}{minor}", abi.platforms),
    ]
    rank = {tag: index for index, tag in reversed(list(enumerate(tags)))}
    found = []
    for wheel in locked():
        if wheel.package == package:
            ranks = [rank[t] for t in parse_wheel_filename(wheel.filename)[3] if t in rank]
            if ranks:
                found.append((min(ranks), wheel.filename, wheel))
    return min(found)[2] if found else None


def cached(wheel: Wheel, cache: Path) -> Path | None:
    """Where the cache has a wheel, if it has it undamaged."""
    path = cache / "wheels" / wheel.filename
    try:
        whole = path.stat().st_size == wheel.size_bytes and sha256_file(path) == wheel.sha256
    except OSError:
        return None
    return path if whole else None


def fetch(
    wheels: Sequence[Wheel], cache: Path, *, progress: Progress, command: str = ""
) -> list[Path]:
    """Where the cache has wheels; those that it lacks are brought by pip first.

    Args:
        command: what fetches them on another machine, for the remedy.

    Raises:
        CannotFetch: pip is missing or failed, or what came has another hash.
    """
    lacking = [wheel for wheel in dict.fromkeys(wheels) if cached(wheel, cache) is None]
    folder = cache / "wheels"
    if lacking:
        folder.mkdir(parents=True, exist_ok=True)
        total = sum(wheel.size_bytes for wheel in lacking)
        with progress.stage("fetch runtimes", total) as stage:
            for wheel in lacking:
                with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as staging:
                    _download(wheel, Path(staging), command)
                    # One rename: two who fetch the same file do not hurt each other.
                    os.replace(Path(staging) / wheel.filename, folder / wheel.filename)
                stage.advance(wheel.size_bytes, wheel.package)
    return [folder / wheel.filename for wheel in wheels]


def _download(wheel: Wheel, folder: Path, command: str) -> None:
    """One file by pip, which compares its hash."""
    requirement = folder / "requirements.txt"
    requirement.write_text(f"{wheel.package} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    interpreter, _, platform = wheel.filename.removesuffix(".whl").split("-")[-3:]
    python = interpreter[2:].replace("3", "3.", 1) if interpreter.startswith("cp3") else "3.11"
    pip = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--no-deps",
        "--disable-pip-version-check", "--no-cache-dir",
        "--retries", "2", "--only-binary=:all:", "--require-hashes",
        "--implementation", "cp", "--python-version", python,
        *(word for name in platform.split(".") for word in ("--platform", name)),
        "--dest", str(folder), "--requirement", str(requirement),
    ]  # fmt: skip
    # A user's own constraints are about this machine's environment, not about a device.
    env = {**os.environ, "PIP_CONSTRAINT": os.devnull}
    try:
        done = subprocess.run(
            pip, capture_output=True, text=True, env=env, timeout=PIP_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise CannotFetch(
            f"pip did not fetch {wheel.filename} within {PIP_TIMEOUT_S / 60:.0f} minutes."
        ) from None
    if done.returncode != 0:
        if "No module named pip" in done.stderr:
            remedy = "Give edgekit's environment a pip: python -m ensurepip"
        else:
            remedy = f"Where there is internet: {command or 'edgekit runtimes fetch'}"
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        raise CannotFetch(
            f"pip could not fetch {wheel.filename}, which is not in the cache: "
            f"{' / '.join(errors)[:500]}",
            remedy=remedy,
        )
    (path,) = folder.glob("*.whl")
    if path.name != wheel.filename:  # an index may spell it differently
        path.rename(folder / wheel.filename)
