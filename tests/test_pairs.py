"""A runtime is an exporter, an inspector, a runner and a registry line; a source or a transport is
a file and a line. Nothing may be there by half."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from edgekit.registry import RUNTIMES, SOURCES, TRANSPORTS

ROOT = Path(__file__).resolve().parents[1]
AGENT = ROOT / "targets" / "agent"


def definitions(reference: str) -> tuple[Path, set[str]]:
    """The file of ``"module:attr"`` and the names that it defines; imports nothing."""
    module = reference.partition(":")[0]
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = ast.FunctionDef | ast.ClassDef
    return path, {node.name for node in tree.body if isinstance(node, kinds)}


@pytest.mark.parametrize(
    "reference",
    [entry.exporter for entry in RUNTIMES.values()]
    + [entry.inspector for entry in RUNTIMES.values()]
    + [entry.debugger for entry in RUNTIMES.values()]
    + [*SOURCES.values(), *TRANSPORTS.values()],
)
def test_what_is_registered_exists(reference: str) -> None:
    path, names = definitions(reference)
    assert reference.partition(":")[2] in names, f"{path} does not define it"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtime_has_its_runner(runtime: str) -> None:
    stem = RUNTIMES[runtime].runner
    found = [path.name for path in AGENT.glob(f"{stem}.*") if path.suffix in (".py", ".cpp")]
    assert len(found) == 1, f"targets/agent holds {found or 'no file'} for {stem}"


def test_files_and_registry_agree() -> None:
    """Neither an exporter, inspector, runner nor source that nobody registered."""
    exporters = {path.stem for path in (ROOT / "quantize").glob("to_*.py")}
    assert exporters == {module_name(entry.exporter) for entry in RUNTIMES.values()}
    inspectors = {path.stem for path in (ROOT / "quantize").glob("inspect_*.py")}
    assert inspectors == {module_name(entry.inspector) for entry in RUNTIMES.values()}
    debuggers = {path.stem for path in (ROOT / "quantize").glob("debug_*.py")}
    assert debuggers == {module_name(entry.debugger) for entry in RUNTIMES.values()}
    contents = {path.stem for path in (ROOT / "quantize").glob("contents_*.py")}
    assert contents == {f"contents_{runtime}" for runtime in RUNTIMES}
    runners = {path.stem for path in (*AGENT.glob("run_*.py"), *AGENT.glob("*_runner.cpp"))}
    assert runners == {entry.runner for entry in RUNTIMES.values()}
    helpers = {"__init__", "base", "user_code"}
    sources = {path.stem for path in (ROOT / "edgekit" / "sources").glob("*.py")} - helpers
    assert sources == {module_name(reference) for reference in SOURCES.values()}


def module_name(reference: str) -> str:
    return reference.partition(":")[0].rpartition(".")[2]


def test_extensions_tell_runtimes_apart() -> None:
    extensions = [entry.extension for entry in RUNTIMES.values()]
    assert len(set(extensions)) == len(extensions)
    assert all(re.fullmatch(r"\.[a-z]+", extension) for extension in extensions)


def test_every_extra_that_an_error_names_can_be_installed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {entry.extra for entry in RUNTIMES.values()}
    for tree in ("edgekit", "quantize", "targets"):
        for path in (ROOT / tree).rglob("*.py"):
            for call in re.findall(
                r'MissingExtra\(\s*"[^"]+",\s*"([^"]+)"', path.read_text("utf-8")
            ):
                named.add(call)
    assert named <= set(project["optional-dependencies"])
