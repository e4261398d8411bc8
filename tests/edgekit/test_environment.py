"""What doctor finds out about this machine: missing, broken and crashing packages included."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit import environment, registry
from edgekit.environment import check_exporters, check_machine, check_sources
from edgekit.registry import RuntimeEntry

MODULES = {
    "edgekit_test_works": "",
    "edgekit_test_raises": "raise RuntimeError('wrong glibc')",
    "edgekit_test_needs": "import edgekit_test_absent_too",
    "edgekit_test_dies": "import os, signal\nos.kill(os.getpid(), signal.SIGILL)",
}


@pytest.fixture
def entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, RuntimeEntry]:
    """Runtimes whose packages work, raise, need another one, die, and are not there."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    root = Path(environment.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{root}:{tmp_path}")
    found = {
        name.removeprefix("edgekit_test_"): RuntimeEntry(
            "some", ".x", "m:e", "m:i", "run_x", "X", packages=(name,)
        )
        for name in (*MODULES, "edgekit_test_absent.part")
    }
    monkeypatch.setattr(registry, "runtimes", lambda: found)
    return found


@pytest.mark.usefixtures("entries")
def test_every_way_of_not_importing_is_told_with_a_remedy() -> None:
    checks = {check.name: check for check in check_exporters()}
    assert checks["works"].ok
    assert checks["raises"].detail == (
        "edgekit_test_raises does not import: RuntimeError: wrong glibc"
    )
    assert "edgekit_test_absent_too" in checks["needs"].detail
    assert checks["absent.part"].detail == "not installed: edgekit_test_absent"
    assert "SIGILL" in checks["dies"].detail
    assert "instructions that this CPU does not have" in checks["dies"].detail
    failed = [check for check in checks.values() if not check.ok]
    assert len(failed) == 4
    assert all("pip install 'edgekit[some]'" in check.remedy for check in failed)


def test_versions_are_those_of_the_distributions() -> None:
    found = environment.import_packages({"packages": ["typer", "pydantic.types"]})
    assert set(found["versions"]) == {"typer", "pydantic"}
    assert found["missing"] == [] and found["broken"] == {}


def test_the_machine_is_described(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = {check.name: check for check in check_machine(tmp_path)}
    assert list(checks) == ["python", "machine", "compiler", "disk"]
    monkeypatch.setenv("PATH", str(tmp_path))
    without = {check.name: check for check in check_machine(tmp_path)}["compiler"]
    assert (without.ok, without.remedy) == (False, "apt-get install g++")


def test_sources_that_are_not_installed_are_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert [(check.name, check.ok) for check in check_sources()] == [
        ("torchvision", False),
        ("timm", False),
    ]
