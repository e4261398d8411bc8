"""Fixtures for the tests of bundles."""

from __future__ import annotations

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
