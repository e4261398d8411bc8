"""The public names: pinned, importable, lazy."""

from __future__ import annotations

import subprocess
import sys

import pytest

import edgekit

PUBLIC = [
    "Artifact",
    "Budget",
    "Bundle",
    "EdgekitError",
    "Manifest",
    "Preprocess",
    "ProbeResult",
    "Project",
    "ProjectConfig",
    "RuntimeEntry",
    "Selection",
    "Target",
]


def test_the_public_names_are_these() -> None:
    """Taking one away breaks users; adding one is a promise."""
    assert edgekit.__all__ == PUBLIC
    assert [name for name in dir(edgekit) if name != "__version__"] == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_name_resolves_and_says_what_it_is(name: str) -> None:
    found = getattr(edgekit, name)
    assert found.__name__ == name
    assert (found.__doc__ or "").strip()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'edgekit' has no attribute 'Projekt'"):
        edgekit.Projekt  # noqa: B018


def test_names_are_imported_on_first_use_only() -> None:
    code = (
        "import sys, edgekit\n"
        "assert 'edgekit.types' not in sys.modules\n"
        "edgekit.Budget(max_drop=0.1)\n"
        "assert 'edgekit.types' in sys.modules and 'edgekit.bundle' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_method_is_documented() -> None:
    methods = [name for name in vars(edgekit.Project) if not name.startswith("_")]
    assert {"quantize", "deploy", "probe", "select", "run", "open", "load"} <= set(methods)
    for name in methods:
        assert (getattr(edgekit.Project, name).__doc__ or "").strip(), name
