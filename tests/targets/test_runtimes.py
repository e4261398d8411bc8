"""Runtimes: what is resolved, how it is named, and what the doctor finds."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from edgekit.errors import DeviceError, MissingExtra, UsageError
from edgekit.progress import Quiet
from edgekit.registry import RUNTIMES
from edgekit.targets import runtimes
from edgekit.targets.abi import Abi, host_abi
from edgekit.targets.device import Device, connect
from edgekit.targets.doctor import check_runtime, check_runtimes
from tests.targets.conftest import local_target

HERE = host_abi()


def test_a_runtime_is_named_by_its_content(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = runtimes.resolve("onnx", HERE, cache=cache)
    assert runtime.folder.startswith(f"onnx-{runtime.version}+")
    assert runtime.folder.endswith(f"-{runtime.abi}") and runtime.abi.endswith(HERE.arch)
    assert runtimes.resolve("onnx", HERE, cache=cache) == runtime
    changed = dataclasses.replace(
        runtime, files=(dataclasses.replace(runtime.files[0], sha256="0" * 64), *runtime.files[1:])
    )
    assert changed.folder != runtime.folder, "another runner is another runtime"


def test_every_registered_runtime_has_a_distribution() -> None:
    assert set(runtimes.DISTRIBUTIONS) == set(RUNTIMES)


def test_what_is_not_there_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no runtime 'abacus'"):
        runtimes.resolve("abacus", HERE, cache=cache)
    with pytest.raises(DeviceError, match="for riscv64"):
        runtimes.resolve("onnx", Abi("riscv64", "3.11", "2.36"), cache=cache)

    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(MissingExtra) as caught:
        runtimes.resolve("tflite", HERE, cache=cache)
    assert "edgekit[tflite]" in caught.value.remedy


def test_without_a_compiler_the_remedy_is_to_install_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match=r"no g\+\+") as caught:
        runtimes.resolve("executorch", HERE, cache=tmp_path)
    assert caught.value.remedy == "apt-get install g++"


def test_a_compiler_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bin" / "g++"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'fatal error: no such header' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    with pytest.raises(DeviceError, match="no such header"):
        runtimes.resolve("executorch", HERE, cache=tmp_path)
    assert not list(tmp_path.glob("executorch_runner/*/executorch_runner"))


def test_the_doctor_executes_every_runtime(device: Device) -> None:
    checks = check_runtimes(device)
    assert [check.runtime for check in checks] == list(RUNTIMES)
    for check in checks:
        assert check.ok and check.version[0].isdigit() and not check.signal, check


@pytest.mark.parametrize(
    ("code", "signal", "text"),
    [
        ("import os; os.kill(os.getpid(), 4)", "SIGILL", "instruction that this CPU does not have"),
        ("import sys; sys.exit('x.so: undefined symbol: _ZN3fooE')", "", "symbol: _ZN3fooE"),
        ("raise MemoryError", "", "ran out of memory"),
        ("print('fine')", "", "the self-test failed"),
        ("import time; time.sleep(99)", "", "time limit"),
    ],
)
def test_the_doctor_names_what_is_wrong(
    code: str, signal: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.targets.doctor.TIMEOUT_S", 2.0)
    with connect(local_target(tmp_path / "root")) as device:
        good = device.runtime("onnx")
        argv = ("{python}", "-I", "-S", "-c", code)
        monkeypatch.setitem(device._runtimes, "onnx", dataclasses.replace(good, argv=argv))
        check = check_runtime(device, "onnx", progress=Quiet())
    assert not check.ok and check.signal == signal and text in check.message, check
    assert check.version == good.version


LIMITED = ("/bin/sh", "-c", 'ulimit -v 400000; exec "$0" "$@"')


def test_the_doctor_names_a_full_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch does not fit into 400 MB of address space."""
    with connect(local_target(tmp_path / "root")) as device:
        good = device.runtime("torchscript")
        limited = dataclasses.replace(good, argv=(*LIMITED, *good.argv))
        monkeypatch.setitem(device._runtimes, "torchscript", limited)
        check = check_runtime(device, "torchscript", progress=Quiet())
    assert not check.ok and "memory" in check.message and "too little memory" in check.remedy, check


@pytest.mark.parametrize(
    ("source", "text", "remedy"),
    [
        (None, "libexecutorch_threadpool.so: cannot open shared object file", "status --verify"),
        ("int other;", "undefined symbol: ", "another version"),
    ],
)
def test_the_doctor_names_missing_libraries_and_symbols(
    source: str | None, text: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real loader, before a library that is not there or is another one of that name."""
    with connect(local_target(tmp_path / "root")) as device:
        good = device.runtime("executorch")
        name = "libexecutorch_threadpool.so"
        files = [file for file in good.files if file.name != name]
        if source is not None:
            (tmp_path / "other.c").write_text(source)
            made = tmp_path / name
            build = ["g++", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(made)]
            subprocess.run([*build, str(tmp_path / "other.c")], check=True)
            files.append(
                runtimes.RuntimeFile(name, made, hashlib.sha256(made.read_bytes()).hexdigest())
            )
        broken = dataclasses.replace(good, files=tuple(files))
        monkeypatch.setitem(device._runtimes, "executorch", broken)
        check = check_runtime(device, "executorch", progress=Quiet())
    assert not check.ok and text in check.message and remedy in check.remedy, check
