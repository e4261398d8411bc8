"""Which wheels a device gets, and what happens where they cannot be had."""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from pathlib import Path

import pytest

from edgekit.cli import main
from edgekit.errors import DeviceError, UsageError
from edgekit.progress import Quiet
from edgekit.targets import runtimes, supply, wheels
from edgekit.targets.abi import Abi, host_abi, profile_abi, required_glibc
from edgekit.targets.profile import load_profile
from edgekit.types import Target

ROOT = Path(__file__).resolve().parents[2]
PI = Abi("aarch64", "3.11", "2.36", ("asimd", "crc32", "fp"))
TRIXIE = Abi("aarch64", "3.13", "2.41", ("asimd", "crc32", "fp"))


@pytest.mark.parametrize("abi", [PI, TRIXIE, Abi("aarch64", "3.10", "2.35")])
@pytest.mark.parametrize("runtime", ["tflite", "onnx", "torchscript"])
def test_every_wheel_fits_the_device(runtime: str, abi: Abi) -> None:
    row, chosen = wheels.choose(runtime, abi)
    assert [wheel.package for wheel in chosen] == list(row.packages)
    tag = f"cp{abi.python.replace('.', '')}"
    for wheel in chosen:
        assert f"-{tag}-" in wheel.filename or "-none-any" in wheel.filename
        assert "aarch64" in wheel.filename or "-any." in wheel.filename
        assert len(wheel.sha256) == 64 and wheel.size_bytes > 1000


def test_a_pi_4_gets_a_torch_that_it_can_execute() -> None:
    assert wheels.choose("torchscript", PI)[0].version == "2.9.1"


def test_the_device_runs_the_versions_that_files_are_made_for() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line.count("==") == 1 and line[0] != "#")
    for runtime in ("tflite", "onnx"):
        name, _, version = wheels.choose(runtime, PI)[0].packages[0].partition("==")
        assert pinned[name] == version
    (row,) = [row for row in wheels.table() if row.runtime == "executorch"]
    assert row.version == pinned["executorch"]


def test_every_file_of_the_table_is_locked() -> None:
    for row in wheels.table():
        for arch in row.arch:
            for python in row.python:
                assert wheels.choose(row.runtime, Abi(arch, python, "2.34"))[0] == row
    packages = {package for row in wheels.table() for package in row.packages}
    assert {wheel.package for wheel in wheels.locked()} == packages


@pytest.mark.parametrize(
    ("runtime", "abi", "text", "remedy"),
    [
        ("onnx", Abi("armv7l", "3.11", "2.36"), "No build of onnx for armv7l", "64-bit system"),
        ("torchscript", Abi("x86_64", "3.11", "2.36"), "only for aarch64", "CUDA"),
        ("tflite", Abi("aarch64", "3.9", "2.31"), "3.10, 3.11.*device's is 3.9", "ExecuTorch"),
        ("onnx", Abi("aarch64", "3.11", "2.26"), "glibc 2.26", "Update"),
        ("onnx", Abi("aarch64", "3.11", ""), "glibc unknown", ""),
    ],
)
def test_what_does_not_fit_is_said(runtime: str, abi: Abi, text: str, remedy: str) -> None:
    with pytest.raises(DeviceError, match=text) as caught:
        wheels.choose(runtime, abi)
    assert remedy in caught.value.remedy and caught.value.exit_code == 4


def test_the_runner_names_the_glibc_that_it_needs() -> None:
    assert required_glibc(b"\0GLIBC_2.4\0x\0GLIBC_2.34\0GLIBC_2.17\0") == "2.34"
    assert required_glibc(Path(sys.executable).resolve().read_bytes()[:0]) == ""


def test_a_full_cache_needs_no_pip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The smallest real set: fetched once with pip and its hash, then taken without it."""
    small = next(w for w in wheels.locked() if w.package.startswith("typing_extensions"))
    (path,) = wheels.fetch([small], tmp_path, progress=Quiet())
    assert path.stat().st_size == small.size_bytes
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert wheels.fetch([small], tmp_path, progress=Quiet()) == [path]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(FileNotFoundError):
        wheels.fetch([small], tmp_path, progress=Quiet())


def test_without_internet_the_error_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    command = "edgekit runtimes fetch --target pole"
    with pytest.raises(DeviceError, match=r"pip could not fetch ai_edge_litert") as caught:
        runtimes.resolve("tflite", PI, cache=tmp_path, command=command)
    assert caught.value.remedy.endswith(command)
    assert not list((tmp_path / "wheels").iterdir()), "nothing half-fetched stays"


def test_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index that serves another file of the name."""
    small = next(w for w in wheels.locked() if w.package.startswith("typing_extensions"))
    (path,) = wheels.fetch([small], tmp_path / "good", progress=Quiet())
    index = tmp_path / "index"
    index.mkdir()
    shutil.copy(path, index)
    with (index / path.name).open("ab") as file:
        file.write(b"more")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    with pytest.raises(DeviceError, match=r"(?i)hash"):
        wheels.fetch([small], tmp_path / "other", progress=Quiet())


def test_a_profile_says_what_to_fetch_without_the_device() -> None:
    target = Target("rpi4", "ssh", "nowhere.invalid", profile="rpi4")
    found = supply.abis_of(target, ["3.11", "3.13"], progress=Quiet())
    assert [(abi.arch, abi.python) for abi in found] == [("aarch64", "3.11"), ("aarch64", "3.13")]
    assert profile_abi(load_profile("rpi4")).python == "3.11"
    with pytest.raises(UsageError, match="is not a version"):
        supply.abis_of(target, ["three"], progress=Quiet())
    with pytest.raises(UsageError, match="no profile"):
        supply.abis_of(Target("x", "ssh", "x"), ["3.11"], progress=Quiet())
    with pytest.raises(UsageError, match="no runtime 'tfl'"):
        supply.chosen(["tfl"])


def test_list_says_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runtimes", "list", "--target", "rpi4", "--python", "3.13", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = {row["runtime"]: row for row in document["runtimes"]}
    assert rows["torchscript"]["version"] == "2.9.1" and not rows["torchscript"]["cached"]
    assert rows["tflite"]["size_bytes"] > 20e6 and rows["tflite"]["device"].endswith("3.13")


def test_fetch_exits_with_4_where_something_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    command = ["runtimes", "fetch", "--target", "rpi4", "--python", "3.12", "--runtimes", "tflite"]
    assert main(command) == 4
    assert "pip could not fetch" in capsys.readouterr().out


def test_this_machine_uses_its_own_packages() -> None:
    assert not runtimes.resolve("onnx", host_abi()).archives
    assert tomllib.loads(wheels.TABLE.read_text())["set"]
