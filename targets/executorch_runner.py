"""The native ExecuTorch runner: compiled against the libraries of an executorch wheel, also for
another architecture, or taken from edgekit's own wheel, which carries compiled ones."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import shutil
import subprocess
import zipfile
from importlib import util
from pathlib import Path

from edgekit.errors import DeviceError
from edgekit.files import staged_dir

SOURCE = Path(__file__).resolve().parent / "agent" / "executorch_runner.cpp"
#: Compiled runners of a release: ``<arch>/executorch_runner-<key>``.
BUILT = SOURCE.parent / "built"

#: quantized: int8 programs may keep quantize and dequantize operators outside the delegate;
#: optimized: every other operator outside the delegate.
LIBRARIES = (
    "libexecutorch.so",
    "libexecutorch_threadpool.so",
    "libexecutorch_backend_xnnpack.so",
    "libexecutorch_kernels_optimized.so",
    "libexecutorch_kernels_quantized.so",
)
COMPILERS = {"aarch64": "aarch64-linux-gnu-g++", "x86_64": "x86_64-linux-gnu-g++"}
PACKAGES = {"aarch64": "g++-aarch64-linux-gnu", "x86_64": "g++-x86-64-linux-gnu"}


def installed() -> Path | None:
    """The folder of the executorch package in this environment."""
    found = util.find_spec("executorch")
    if found is None or not found.submodule_search_locations:
        return None
    return Path(next(iter(found.submodule_search_locations)))


def unpacked(wheel: Path, cache: Path) -> Path:
    """The libraries and headers of a wheel, unpacked once; a folder like :func:`installed`."""
    final = cache / "executorch" / wheel.stem
    if not final.is_dir():
        with staged_dir(final) as folder, zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if fnmatch.fnmatchcase(name, "executorch/lib/*.so") or (
                    name.startswith("executorch/include/") and not name.endswith("/")
                ):
                    archive.extract(name, folder)  # which keeps every name below the folder
    return final / "executorch"


def library(package: Path, name: str, version: str) -> Path:
    """A library of the package.

    Raises:
        DeviceError: the package has none.
    """
    path = package / "lib" / name
    if not path.is_file():
        raise DeviceError(
            f"The executorch {version} wheel has no {name}.",
            remedy="pip install 'executorch>=1.5' (earlier wheels ship no native libraries).",
        )
    return path


def runner(package: Path, version: str, arch: str, cache: Path) -> Path:
    """The compiled runner: of this release, or compiled once per source, version and flags.

    Raises:
        DeviceError: there is no compiler for ``arch``, or it refused the source.
    """
    name = f"executorch_runner-{build_key(version, arch)}"
    carried = BUILT / arch / name
    if carried.is_file():
        return carried
    binary = cache / "executorch_runner" / name / "executorch_runner"
    if not binary.is_file():
        # Staged: what a killed build leaves is removed by the next one.
        with staged_dir(binary.parent) as folder:
            compile_runner(package, version, arch, folder / binary.name)
    return binary


def build_key(version: str, arch: str) -> str:
    """Names a build by all that goes into it, but for the compiler."""
    parts = "\0".join([*_flags(version), *LIBRARIES, arch]).encode() + SOURCE.read_bytes()
    return hashlib.sha256(parts).hexdigest()[:16]


def compile_runner(package: Path, version: str, arch: str, target: Path) -> None:
    """Compiles the runner for an architecture against a package made for it.

    Raises:
        DeviceError: there is no compiler for ``arch``, or it refused the source.
    """
    native = arch == os.uname().machine
    name = "g++" if native else COMPILERS.get(arch, f"{arch}-linux-gnu-g++")
    compiler = shutil.which(name)
    if compiler is None:
        raise DeviceError(
            f"The ExecuTorch runner has to be compiled once and there is no {name}.",
            remedy=f"apt-get install {'g++' if native else PACKAGES.get(arch, name)}",
        )
    libraries = [f"-l{Path(library).stem.removeprefix('lib')}" for library in LIBRARIES]
    include = package / "include"
    command = [
        compiler, *_flags(version),
        f"-I{include}", f"-I{include / 'executorch/runtime/core/portable_type/c10'}",
        str(SOURCE), "-o", str(target), f"-L{package / 'lib'}",
        # Backends and kernels register themselves when loaded; nothing refers to them by name.
        "-Wl,--no-as-needed", *libraries, "-Wl,-rpath,$ORIGIN",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = " / ".join(done.stderr.strip().splitlines()[-5:])
        raise DeviceError(
            f"{name} could not build the ExecuTorch runner: {last}",
            remedy=f"Check that {name} works and that executorch {version} is fully installed.",
        )


def release_runner(package: Path, version: str, arch: str, folder: Path) -> Path:
    """Compiles the runner for edgekit's own wheel, into ``folder/<arch>``; returns the file.

    Raises:
        DeviceError: as in :func:`compile_runner`.
    """
    final = folder / arch / f"executorch_runner-{build_key(version, arch)}"
    with staged_dir(final.parent) as staging:
        compile_runner(package, version, arch, staging / final.name)
    return final


def _flags(version: str) -> list[str]:
    return [
        "-std=c++17", "-O2", "-s",
        "-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED", "-DET_USE_THREADPOOL",
        f'-DEDGEKIT_EXECUTORCH_VERSION="{version}"',
    ]  # fmt: skip
