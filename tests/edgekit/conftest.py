"""Fixtures for the tests of bundles."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekit.bundle import Bundle, write_bundle
from tests.fixtures.bundles import bundle_parts


@pytest.fixture
def make_parts(tmp_path: Path) -> Callable[[], dict[str, Any]]:
    """Makes the arguments of ``write_bundle`` for a small valid bundle."""
    return lambda: bundle_parts(tmp_path / "parts")


@pytest.fixture
def bundle(tmp_path: Path, make_parts: Callable[[], dict[str, Any]]) -> Bundle:
    """A small valid bundle in ``tmp_path / "bundle"``."""
    return write_bundle(tmp_path / "bundle", **make_parts())


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small valid bundle, to be copied."""
    folder = tmp_path_factory.mktemp("pristine")
    return write_bundle(folder / "bundle", **bundle_parts(folder / "parts")).path


@pytest.fixture
def victim(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(pristine, tmp_path / "victim")
