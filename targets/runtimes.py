"""What a device needs to run an artifact, resolved on the host and named by its content.

A runtime is a folder of files, and of archives to be unpacked there, plus the command that runs an
artifact with them. For the interpreter that runs edgekit the Python runners use the packages that
it already has; for every other one wheels are fetched and brought along. The ExecuTorch runner is a
native program, built here against the libraries of the executorch wheel.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from edgekit import registry
from edgekit.errors import DeviceError, MissingExtra, UsageError
from edgekit.files import sha256_file, staged_dir
from edgekit.progress import Progress, Quiet
from edgekit.targets import executorch_runner, wheels
from edgekit.targets.abi import Abi, required_glibc
from edgekit.targets.profile import version as as_numbers

AGENT_DIR = Path(__file__).resolve().parent / "agent"

#: runtime -> the distribution whose version is the runtime's
DISTRIBUTIONS: Mapping[str, str] = {
    "executorch": "executorch",
    "tflite": "ai-edge-litert",
    "onnx": "onnxruntime",
    "torchscript": "torch",
}

#: What running a model never loads, by distribution; matched against the paths in its wheel. A
#: runtime's self-test and tests/targets/test_device_runtimes.py run without them.
LEFT_OUT: Mapping[str, tuple[str, ...]] = {
    "ai-edge-litert": (
        "ai_edge_litert/libLiteRtWebGpuAccelerator.so",
        "ai_edge_litert/aot/*",
        "ai_edge_litert/tools/*",
    ),
    "numpy": ("*.pyi", "*/tests/*", "*.a", "*.h", "numpy/distutils/*", "numpy/f2py/*"),
    "onnxruntime": (
        "onnxruntime/transformers/*",
        "onnxruntime/quantization/*",
        "onnxruntime/tools/*",
        "onnxruntime/datasets/*",
        "onnxruntime/capi/libonnxruntime.so.*",  # a second copy, for programs in C
    ),
    "torch": (
        "*.pyi",
        "torch/include/*",
        "torch/share/*",
        "torch/bin/protoc*",
        "torch/utils/model_dump/*",
    ),
}


@dataclass(frozen=True, slots=True)
class RuntimeFile:
    """A file of a runtime: its name inside the folder and where the host has it."""

    name: str
    path: Path
    sha256: str
    executable: bool = False


@dataclass(frozen=True, slots=True)
class RuntimeArchive:
    """A zip file whose content becomes part of a runtime's folder, but for the members that one of
    the patterns ``leave_out`` matches. ``unpacked_bytes`` is what that takes."""

    path: Path
    sha256: str
    leave_out: tuple[str, ...]
    unpacked_bytes: int


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime ready to be pushed. ``argv`` may hold ``{dir}`` and ``{python}``: the folder on the
    device, and the interpreter that the agent itself runs with."""

    name: str
    version: str
    abi: str
    files: tuple[RuntimeFile, ...]
    argv: tuple[str, ...]
    archives: tuple[RuntimeArchive, ...] = ()

    @property
    def description(self) -> str:
        """``runtime.json``: canonical, so that equal runtimes have equal text."""
        return json.dumps(
            {
                "schema": 1,
                "name": self.name,
                "version": self.version,
                "abi": self.abi,
                "argv": list(self.argv),
                "files": {
                    file.name: {"sha256": file.sha256, "executable": file.executable}
                    for file in self.files
                },
                "archives": [
                    {"sha256": one.sha256, "leave_out": list(one.leave_out)}
                    for one in self.archives
                ],
            },
            sort_keys=True,
        )

    @property
    def folder(self) -> str:
        """``<name>-<version>+<digest>-<abi>``: the digest covers the runner too, so that a release
        keeps the very runner it was checked with."""
        digest = hashlib.sha256(self.description.encode()).hexdigest()[:8]
        return f"{self.name}-{self.version.replace('+', '.')}+{digest}-{self.abi}"

    def command(self, directory: str, python: str) -> list[str]:
        """The command, to be followed by the runner's arguments."""
        return [part.replace("{dir}", directory).replace("{python}", python) for part in self.argv]


def resolve(
    runtime: str,
    abi: Abi,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    command: str = "",
) -> Runtime:
    """What a device needs to run artifacts of ``runtime``.

    Args:
        runtime: a runtime name, as in an artifact.
        abi: what the device can run.
        cache: where fetched and built files are kept; default :func:`cache_dir`.
        progress: told what is fetched.
        command: what would fetch it on another machine, for the remedy.

    Raises:
        UsageError: no such runtime.
        MissingExtra: its package is not installed here, where this machine's own is needed.
        DeviceError: no build of it fits the device, it cannot be fetched, or there is no compiler.
    """
    if runtime not in DISTRIBUTIONS:
        raise UsageError(f"There is no runtime {runtime!r}; known: {', '.join(DISTRIBUTIONS)}.")
    cache = cache or cache_dir()
    progress = progress or Quiet()
    if runtime == "executorch":
        return _executorch(abi, cache, progress, command)
    files = tuple(_file(AGENT_DIR / name) for name in (f"run_{runtime}.py", "runner_core.py"))
    name = f"cp{abi.python.replace('.', '')}-{abi.arch}"
    # -E and -s: a PYTHONPATH or a user's site-packages must not change what is measured.
    # -B: the runtime's folder is immutable.
    python = ("{python}", "-B", "-E", "-s")
    script = f"{{dir}}/run_{runtime}.py"
    if abi.host:
        return Runtime(runtime, _version(runtime), name, files, (*python, script))
    row, chosen = wheels.choose(runtime, abi)
    paths = wheels.fetch(chosen, cache, progress=progress, command=command)
    archives = tuple(map(_archive, chosen, paths))
    # -S: nor must the device's own packages.
    return Runtime(runtime, row.version, name, files, (*python, "-S", script), archives)


def needed_wheels(runtime: str, abi: Abi) -> tuple[wheels.Wheel, ...]:
    """The wheels that :func:`resolve` would fetch for a device.

    Raises:
        DeviceError: no build of it fits the device.
    """
    if runtime == "executorch":
        return wheels.choose(runtime, _any_python(abi))[1]
    return wheels.choose(runtime, abi)[1]


def _any_python(abi: Abi) -> Abi:
    """ExecuTorch's runner is native; its wheel is taken for one Python, whatever the device has."""
    (row,) = [row for row in wheels.table() if row.runtime == "executorch"]
    return replace(abi, python=row.python[0])


def cache_dir() -> Path:
    """Where edgekit keeps what it can build again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit"


def assemble(runtime: Runtime, parent: Path) -> Path:
    """Puts a runtime of this machine's own below ``parent``, unless it is there; returns it."""
    assert not runtime.archives
    final = parent / runtime.folder
    if final.is_dir():
        return final
    with staged_dir(final) as staging:
        for file in runtime.files:
            shutil.copyfile(file.path, staging / file.name)
            (staging / file.name).chmod(0o755 if file.executable else 0o644)
    return final


def _version(runtime: str) -> str:
    try:
        return metadata.version(DISTRIBUTIONS[runtime])
    except metadata.PackageNotFoundError:
        raise MissingExtra(DISTRIBUTIONS[runtime], registry.runtimes()[runtime].extra) from None


def _file(path: Path) -> RuntimeFile:
    return RuntimeFile(path.name, path, sha256_file(path))


def _archive(wheel: wheels.Wheel, path: Path) -> RuntimeArchive:
    leave_out = LEFT_OUT.get(wheel.package.partition("==")[0], ())
    with zipfile.ZipFile(path) as archive:
        size = sum(
            info.file_size
            for info in archive.infolist()
            if not any(fnmatch.fnmatchcase(info.filename, pattern) for pattern in leave_out)
        )
    return RuntimeArchive(path, wheel.sha256, leave_out, size)


def executorch_package(abi: Abi, cache: Path, progress: Progress, command: str) -> tuple[str, Path]:
    """Version and folder of an executorch package for an architecture: the installed one for this
    machine's own, else the fetched one.

    Raises:
        MissingExtra, DeviceError: as in :func:`resolve`.
    """
    package = executorch_runner.installed() if abi.arch == os.uname().machine else None
    if package is not None:
        return _version("executorch"), package
    if abi.host:
        raise MissingExtra("executorch", "executorch")
    row, chosen = wheels.choose("executorch", _any_python(abi))
    (wheel,) = wheels.fetch(chosen, cache, progress=progress, command=command)
    return row.version, executorch_runner.unpacked(wheel, cache)


def _executorch(abi: Abi, cache: Path, progress: Progress, command: str) -> Runtime:
    version, package = executorch_package(abi, cache, progress, command)
    binary = executorch_runner.runner(package, version, abi.arch, cache)
    libraries = [
        executorch_runner.library(package, name, version) for name in executorch_runner.LIBRARIES
    ]
    needed = max((required_glibc(p.read_bytes()) for p in [binary, *libraries]), key=as_numbers)
    if abi.glibc and as_numbers(abi.glibc) < as_numbers(needed):
        raise DeviceError(
            f"The ExecuTorch runner needs glibc {needed}; the device has {abi.glibc}.",
            remedy="Update the device's system (Raspberry Pi OS bookworm or later), or use a "
            "runner that was built on an older one: `edgekit runtimes build` there.",
        )
    runner = RuntimeFile("executorch_runner", binary, sha256_file(binary), executable=True)
    files = (runner, *map(_file, libraries))
    return Runtime("executorch", version, abi.arch, files, ("{dir}/executorch_runner",))
