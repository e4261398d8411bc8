"""Setting up on a machine that lacks something: a clear message, and the right exit code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(
    *command: str, tools: tuple[str, ...], folder: Path, **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script with nothing on its PATH but ``tools``."""
    path = folder / "bin"
    path.mkdir()
    for tool in ("bash", "dirname", *tools):
        found = shutil.which(tool)
        assert found is not None
        (path / tool).symlink_to(found)
    return subprocess.run(
        ["bash", *command], env={"PATH": str(path), **env}, capture_output=True, text=True
    )


def test_missing_packages_are_named_where_there_is_no_apt(tmp_path: Path) -> None:
    done = run(str(ROOT / ".ci" / "system-packages"), tools=(), folder=tmp_path)
    assert done.returncode == 1
    assert "missing system packages: g++ dpkg g++-aarch64-linux-gnu" in done.stderr
    assert ". There is no apt-get here" in done.stderr


def test_optional_packages_are_named_and_left_out(tmp_path: Path) -> None:
    script = str(ROOT / ".ci" / "system-packages")
    done = run(script, "--optional", tools=("dpkg-deb",), folder=tmp_path)
    assert done.returncode == 0
    assert "missing system packages: g++." in done.stderr
    assert "going on without" in done.stderr


def test_nothing_is_done_where_nothing_is_missing(tmp_path: Path) -> None:
    # Those of the system's own folders (sshd, mke2fs) are looked for there, too.
    tools = ("g++", "dpkg-deb", "aarch64-linux-gnu-g++", "mmdebstrap", "podman", "ip")
    emulators = ("qemu-aarch64", "qemu-aarch64-static", "qemu-system-aarch64")
    script = str(ROOT / ".ci" / "system-packages")
    done = run(script, tools=(*tools, *emulators), folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_another_python_is_refused_by_name(tmp_path: Path) -> None:
    other = tmp_path / "python3.9"
    other.write_text("#!/usr/bin/env bash\nexit 1\n")
    other.chmod(0o755)
    script = str(ROOT / ".ci" / "make-venv")
    venv = tmp_path / "venv"
    done = run(script, str(venv), "dev", tools=("env",), folder=tmp_path, PYTHON=str(other))
    assert done.returncode == 1
    assert f"no Python 3.11 found (tried: {other})" in done.stderr
    assert "make PYTHON=" in done.stderr
    assert not venv.exists()


def test_every_installed_package_is_pinned() -> None:
    """Where it is made by make, the environment holds exactly the versions of constraints.txt."""
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if not line.startswith("#")
    )
    normal = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    done = subprocess.run(
        [sys.executable, "-m", "pip", "freeze", "--all", "--exclude-editable"],
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    installed = dict(line.split("==") for line in done.stdout.splitlines() if "==" in line)
    unpinned = {
        f"{name}=={version}"
        for name, version in installed.items()
        if normal.get(re.sub(r"[-_.]+", "-", name).lower()) != version
    }
    assert {pin.split("==")[0] for pin in unpinned} <= {"pip", "wheel"}, unpinned


def test_pins_name_a_version_and_no_place() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert len(pins) > 100
    assert not [pin for pin in pins if not re.fullmatch(r"[\w.-]+==[\w.+]+", pin)]
