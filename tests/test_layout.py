"""The shape of the repository: fixed names, links, packages, sizes, and the guard of section 9."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FIXED = {"pyproject.toml", "edgekit", "quantize", "targets", "apps", "tests", "docker"}
BESIDE = {
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "benchmarks",
    "constraints.txt",
    "docs",
    "examples",
}
LINKS = {"edgekit/quantize": "../quantize", "edgekit/targets": "../targets"}
MAX_LINES = 400
# The first is the contract of all parts, in one place by design; the others go to a device, or to
# its compiler, as one file without anything beside it.
LONGER = {"edgekit/types.py", "targets/agent/agent.py", "targets/agent/executorch_runner.cpp"}
PACKAGES = {"edgekit": "edgekit", "quantize": "edgekit.quantize", "targets": "edgekit.targets"}


def tracked() -> list[str]:
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in done.stdout.split("\0") if name and (ROOT / name).exists()]


def sources() -> list[Path]:
    suffixes = (".py", ".cpp", ".kt", ".swift")
    return [ROOT / name for name in tracked() if name.endswith(suffixes)]


def test_the_top_level_is_what_the_design_fixes() -> None:
    top = {name.split("/")[0] for name in tracked()}
    assert top >= FIXED
    assert not top - FIXED - BESIDE


@pytest.mark.parametrize(("link", "target"), LINKS.items())
def test_the_links_are_links(link: str, target: str) -> None:
    """A checkout without symlinks (or a careless copy) would fork the package."""
    path = ROOT / link
    assert path.is_symlink()
    assert path.readlink() == Path(target)


def test_every_folder_of_python_files_is_a_listed_package() -> None:
    """setuptools leaves an unlisted sub-package out of the wheel without a word."""
    found = {}
    for name in tracked():
        tree, *rest = name.split("/")
        if tree in PACKAGES and name.endswith(".py"):
            found[".".join((PACKAGES[tree], *rest[:-1]))] = (ROOT / name).parent
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(project["tool"]["setuptools"]["packages"]) == set(found)
    # The agent's folder is one of programs, on the device and here.
    programs = {"edgekit.targets.agent"}
    without = {name for name, folder in found.items() if not (folder / "__init__.py").exists()}
    assert without <= programs


def test_files_are_short() -> None:
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in sources()
    }
    long = {name: count for name, count in lines.items() if count > MAX_LINES}
    assert not {name: count for name, count in long.items() if name not in LONGER}


def test_programs_do_not_shadow_what_they_import() -> None:
    """A script's folder comes first on sys.path: an onnx.py there would hide onnx."""
    scripts = ("targets/agent/", "examples/", "benchmarks/", "quantize/")
    names = {
        name: Path(name).stem
        for name in tracked()
        if name.startswith(scripts) and name.endswith(".py")
    }
    taken = set(sys.stdlib_module_names) | {
        "executorch",
        "numpy",
        "onnx",
        "onnxruntime",
        "tflite",
        "torch",
        "torchscript",
    }
    # As members of a package, these are never at the top of sys.path.
    taken -= {"inspect"}
    assert not {name for name, stem in names.items() if stem in taken}


@pytest.mark.parametrize("name", ["quantize", "targets"])
def test_importing_a_top_level_folder_says_what_to_import_instead(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert f"edgekit.{name}" in last


@pytest.mark.parametrize("name", ["quantize", "targets"])
def test_the_development_install_takes_no_top_level_name(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "ModuleNotFoundError" in done.stderr
