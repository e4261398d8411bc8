"""The wheel, built from the source archive: complete, no doubles, beside a user's own files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgekit.progress import Quiet
from edgekit.targets.runtimes import cache_dir
from edgekit.targets.supply import build as build_runner

ROOT = Path(__file__).resolve().parents[1]
TREES = {"edgekit": "edgekit", "quantize": "edgekit/quantize", "targets": "edgekit/targets"}
LINKS = {ROOT / "edgekit" / "quantize", ROOT / "edgekit" / "targets"}
AROUND = ("pyproject.toml", "README.md", "LICENSE")


def files_of(tree: str) -> list[Path]:
    """The files of a tree, relative to it; the links are another tree's."""
    return [
        path.relative_to(ROOT / tree)
        for path in sorted((ROOT / tree).rglob("*"))
        if path.is_file()
        and not {"__pycache__", "built"} & set(path.parts)
        and not LINKS & set(path.parents)
    ]


ARCHS = {"aarch64": b"\xb7\0", "x86_64": b"\x3e\0"}


@dataclass(frozen=True)
class Built:
    sdist: Path
    wheel: Path
    site: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Builds from a copy, because a build leaves folders that the next one would pick up; with the
    runners, as `make wheel` does."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    for name in AROUND:
        shutil.copy(ROOT / name, source)
    for tree in TREES:
        ignore = shutil.ignore_patterns("__pycache__", "built")
        shutil.copytree(ROOT / tree, source / tree, symlinks=True, ignore=ignore)
    for arch in ARCHS:
        build_runner(arch, source / "targets" / "agent" / "built", cache_dir(), progress=Quiet())
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(work / "dist")]
    run([*build, str(source)], cwd=work)
    (sdist,) = (work / "dist").glob("*.tar.gz")
    (wheel,) = (work / "dist").glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run([*pip, "--target", str(work / "site"), str(wheel)], cwd=work)
    return Built(sdist, wheel, work / "site")


def run(command: list[str], *, cwd: Path, site: Path | None = None, **more: str) -> str:
    env = {**os.environ, **({"PYTHONPATH": str(site)} if site else {}), **more}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-900:]
    return done.stdout


def test_the_wheel_holds_every_file_once_and_no_other(built: Built) -> None:
    names = Counter(zipfile.ZipFile(built.wheel).namelist())
    packed = Counter({name: n for name, n in names.items() if ".dist-info/" not in name})
    expected = Counter(f"{TREES[tree]}/{path}" for tree in TREES for path in files_of(tree))
    assert packed - expected == Counter(map(str, runners(built))) and not expected - packed


def runners(built: Built) -> list[Path]:
    """The compiled runners in the installed package, relative to where it is installed."""
    folder = built.site / "edgekit" / "targets" / "agent" / "built"
    return sorted(path.relative_to(built.site) for path in folder.rglob("*") if path.is_file())


def test_the_wheel_carries_a_runner_for_each_architecture(built: Built, tmp_path: Path) -> None:
    found = {path.parent.name: path for path in runners(built)}
    assert set(found) == set(ARCHS)
    for arch, machine in ARCHS.items():
        header = (built.site / found[arch]).read_bytes()[:20]
        assert header[:5] == b"\x7fELF\2" and header[18:] == machine
    code = (
        "from pathlib import Path; from edgekit.targets import executorch_runner as r, wheels\n"
        "(row,) = [row for row in wheels.table() if row.runtime == 'executorch']\n"
        "for arch in row.arch: print(r.runner(Path(), row.version, arch, Path('nowhere')))"
    )
    # Without a compiler in reach and with an empty cache.
    used = run([sys.executable, "-c", code], cwd=tmp_path, site=built.site, PATH="/nowhere")
    assert used.split() == [str(built.site / found[arch]) for arch in ("aarch64", "x86_64")]


def test_the_source_archive_has_no_file_twice(built: Built) -> None:
    with tarfile.open(built.sdist) as tar:
        files = [member.name.split("/", 1)[1] for member in tar if not member.isdir()]
    assert not [name for name in files if name.startswith(("edgekit/quantize", "edgekit/targets"))]
    assert set(files) >= {f"{tree}/{path}" for tree in TREES for path in files_of(tree)}


def test_a_users_own_quantize_and_ours_live_side_by_side(built: Built, tmp_path: Path) -> None:
    for name in ("quantize", "targets"):
        (tmp_path / f"{name}.py").write_text("MINE = True\n", encoding="utf-8")
    code = (
        "import quantize, targets, edgekit.quantize, edgekit.targets\n"
        "assert quantize.MINE and targets.MINE\n"
        "print(edgekit.__file__, edgekit.quantize.__file__, edgekit.targets.__file__)"
    )
    paths = run([sys.executable, "-c", code], cwd=tmp_path, site=built.site).split()
    assert all(path.startswith(str(built.site)) for path in paths)


def test_the_installed_command_starts(built: Built, tmp_path: Path) -> None:
    command = [str(built.site / "bin" / "edgekit"), "--help"]
    assert "quantize" in run(command, cwd=tmp_path, site=built.site)


def test_the_installed_package_says_it_is_typed(built: Built) -> None:
    assert (built.site / "edgekit" / "py.typed").is_file()
