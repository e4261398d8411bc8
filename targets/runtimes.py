"""What a device needs to run an artifact, resolved on the host and named by its content.

A runtime is a folder of files plus the command that runs an artifact with them. For this machine
the Python runners use the interpreter that runs edgekit, with the wheels it already has; the
ExecuTorch runner is a native program, built here against the libraries of the executorch wheel.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from edgekit import registry
from edgekit.errors import DeviceError, MissingExtra, UsageError
from edgekit.files import sha256_file, staged_dir

AGENT_DIR = Path(__file__).resolve().parent / "agent"

#: runtime -> the distribution whose version is the runtime's
DISTRIBUTIONS: Mapping[str, str] = {
    "executorch": "executorch",
    "tflite": "ai-edge-litert",
    "onnx": "onnxruntime",
    "torchscript": "torch",
}

#: quantized: int8 programs may keep quantize and dequantize operators outside the delegate;
#: optimized: every other operator outside the delegate.
EXECUTORCH_LIBRARIES = (
    "libexecutorch.so",
    "libexecutorch_threadpool.so",
    "libexecutorch_backend_xnnpack.so",
    "libexecutorch_kernels_optimized.so",
    "libexecutorch_kernels_quantized.so",
)


@dataclass(frozen=True, slots=True)
class RuntimeFile:
    """A file of a runtime: its name inside the folder and where the host has it."""

    name: str
    path: Path
    sha256: str
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime ready to be pushed. ``argv`` may hold ``{dir}`` and ``{python}``: the folder on the
    device, and the interpreter that the agent itself runs with."""

    name: str
    version: str
    abi: str
    files: tuple[RuntimeFile, ...]
    argv: tuple[str, ...]

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


def resolve(runtime: str, *, arch: str, cache: Path | None = None) -> Runtime:
    """What this machine needs to run artifacts of ``runtime``.

    Args:
        runtime: a runtime name, as in an artifact.
        arch: the device's machine name; only this machine's own is served so far.
        cache: where built programs are kept; default ``~/.cache/edgekit`` or XDG_CACHE_HOME.

    Raises:
        UsageError: no such runtime.
        MissingExtra: its package is not installed.
        DeviceError: the architecture is another one, or there is no compiler.
    """
    if runtime not in DISTRIBUTIONS:
        raise UsageError(f"There is no runtime {runtime!r}; known: {', '.join(DISTRIBUTIONS)}.")
    if arch != os.uname().machine:
        raise DeviceError(f"No {runtime} runtime is available for {arch} from this machine yet.")
    version = _version(runtime)
    if runtime == "executorch":
        return _executorch(version, arch, cache or cache_dir())
    files = tuple(_file(AGENT_DIR / name) for name in (f"run_{runtime}.py", "runner_core.py"))
    abi = f"cp{sys.version_info.major}{sys.version_info.minor}-{arch}"
    # -E and -s: a PYTHONPATH or a user's site-packages must not change what is measured.
    # -B: the runtime's folder is immutable.
    argv = ("{python}", "-B", "-E", "-s", f"{{dir}}/run_{runtime}.py")
    return Runtime(runtime, version, abi, files, argv)


def cache_dir() -> Path:
    """Where edgekit keeps what it can build again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgekit"


def assemble(runtime: Runtime, parent: Path) -> Path:
    """Puts a runtime's folder below ``parent`` on this machine, unless it is there; returns it."""
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


def _file(path: Path, *, executable: bool = False) -> RuntimeFile:
    return RuntimeFile(path.name, path, sha256_file(path), executable)


def _executorch(version: str, arch: str, cache: Path) -> Runtime:
    package = util.find_spec("executorch")
    if package is None or not package.submodule_search_locations:
        raise MissingExtra("executorch", "executorch")
    wheel = Path(next(iter(package.submodule_search_locations)))
    binary = build_executorch_runner(wheel, version, arch, cache)
    files = [_file(binary, executable=True)]
    for name in EXECUTORCH_LIBRARIES:
        path = wheel / "lib" / name
        if not path.is_file():
            raise DeviceError(
                f"The executorch {version} wheel has no {name}.",
                remedy="pip install 'executorch>=1.5' (earlier wheels ship no native libraries).",
            )
        files.append(_file(path))
    return Runtime("executorch", version, arch, tuple(files), ("{dir}/executorch_runner",))


def build_executorch_runner(wheel: Path, version: str, arch: str, cache: Path) -> Path:
    """The native runner, compiled once per source, wheel version and compiler flags.

    Raises:
        DeviceError: there is no g++, or it refused the source.
    """
    source = AGENT_DIR / "executorch_runner.cpp"
    include = wheel / "include"
    libraries = [f"-l{Path(name).stem.removeprefix('lib')}" for name in EXECUTORCH_LIBRARIES]
    flags = [
        "-std=c++17", "-O2", "-s",
        "-DC10_USING_CUSTOM_GENERATED_MACROS", "-DET_EVENT_TRACER_ENABLED", "-DET_USE_THREADPOOL",
        f'-DEDGEKIT_EXECUTORCH_VERSION="{version}"',
        *libraries,
    ]  # fmt: skip
    key = hashlib.sha256("\0".join([*flags, arch]).encode() + source.read_bytes()).hexdigest()
    binary = cache / "executorch_runner" / key[:16] / "executorch_runner"
    if binary.is_file():
        return binary
    compiler = shutil.which("g++")
    if compiler is None:
        raise DeviceError(
            "The ExecuTorch runner has to be compiled once and there is no g++.",
            remedy="apt-get install g++",
        )
    # Staged: what a killed build leaves is removed by the next one.
    with staged_dir(binary.parent) as folder:
        built = folder / binary.name
        options = [flag for flag in flags if not flag.startswith("-l")]
        command = [
            compiler, *options,
            f"-I{include}", f"-I{include / 'executorch/runtime/core/portable_type/c10'}",
            str(source), "-o", str(built), f"-L{wheel / 'lib'}",
            # Backends and kernels register themselves when loaded; nothing refers to them by name.
            "-Wl,--no-as-needed", *libraries, "-Wl,-rpath,$ORIGIN",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = " / ".join(done.stderr.strip().splitlines()[-5:])
            raise DeviceError(
                f"g++ could not build the ExecuTorch runner: {last}",
                remedy=f"Check that g++ works and that executorch {version} is fully installed.",
            )
    return binary
