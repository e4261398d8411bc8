"""The registry: built-ins resolve, others' entry points join lazily, clashes are refused."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit import registry
from edgekit.errors import UsageError


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package with entry points, as pip would lay it out."""
    info = tmp_path / "someones-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: someones\nVersion: 1.0\n")
    (tmp_path / "someones_plugin.py").write_text(
        "from edgekit.registry import RuntimeEntry\n"
        "ENTRY = RuntimeEntry('someones', '.some', 'm:e', 'm:i', 'run_some', 'Some')\n"
        "def load(spec):\n    return 'loaded'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    _forget()
    yield info / "entry_points.txt"
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    registry._outside.cache_clear()
    registry.runtimes.cache_clear()


def test_runtimes_have_distinct_extensions_and_extras_that_exist() -> None:
    entries = registry.runtimes()
    assert tuple(entries) == ("executorch", "tflite", "onnx", "torchscript")
    assert len({entry.extension for entry in entries.values()}) == len(entries)
    assert [name for name, entry in entries.items() if entry.legacy] == ["torchscript"]
    assert "legacy" in entries["torchscript"].label


def test_the_named_recipes_are_those_that_exist() -> None:
    from edgekit.quantize.recipes import RECIPES

    assert tuple(RECIPES) == registry.RECIPES


def test_the_named_rungs_are_those_that_exist() -> None:
    from edgekit.quantize.rungs import RUNGS

    assert tuple(RUNGS) == registry.RUNGS


def test_unknown_names_are_answered_with_suggestions() -> None:
    with pytest.raises(UsageError, match=r"Unknown runtime 'tflit'") as caught:
        registry.load("runtimes", "tflit")
    assert "Did you mean 'tflite'?" in caught.value.remedy
    with pytest.raises(UsageError, match=r"Unknown model source"):
        registry.load("sources", "zzz")


def test_another_package_adds_a_runtime_and_a_source(plugin: Path) -> None:
    plugin.write_text(
        "[edgekit.runtimes]\nsome = someones_plugin:ENTRY\n"
        "[edgekit.sources]\nsomewhere = someones_plugin:load\n"
    )
    assert registry.runtimes()["some"].extension == ".some"
    assert registry.load("sources", "somewhere")(None) == "loaded"
    from edgekit.sources import kind_of

    assert kind_of("somewhere:NAME") == "somewhere"


def test_a_package_may_not_replace_a_built_in(plugin: Path) -> None:
    plugin.write_text("[edgekit.runtimes]\ntflite = someones_plugin:ENTRY\n")
    with pytest.raises(UsageError, match=r"someones defines 'tflite'"):
        registry.runtimes()


@pytest.mark.parametrize("reference", ["absent_module:x", "someones_plugin:absent"])
def test_a_broken_package_is_named(plugin: Path, reference: str) -> None:
    plugin.write_text(f"[edgekit.runtimes]\nsome = {reference}\n")
    with pytest.raises(UsageError, match=r"'some' of entry-point group edgekit.runtimes"):
        registry.runtimes()


def test_a_wrong_kind_of_object_is_refused(plugin: Path) -> None:
    plugin.write_text("[edgekit.runtimes]\nsome = someones_plugin:load\n")
    with pytest.raises(UsageError, match=r"not a RuntimeEntry"):
        registry.runtimes()


def test_importing_edgekit_and_its_registry_loads_no_framework() -> None:
    heavy = "{'torch', 'tensorflow', 'executorch', 'litert_torch', 'onnx', 'onnxruntime', "
    heavy += "'paramiko', 'duckdb', 'plotly', 'numpy', 'pydantic', 'rich', 'typer'}"
    code = (
        "import sys, edgekit, edgekit.registry, edgekit.types, edgekit.errors, edgekit.config\n"
        f"loaded = {heavy} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
