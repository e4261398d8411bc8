"""docs/cli.md is what the commands say of themselves."""

from __future__ import annotations

from edgekit import cli
from edgekit.cli.reference import reference
from tests.edgekit.cli.conftest import ROOT


def test_the_reference_is_up_to_date() -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == reference(), "run: python -m edgekit.cli.reference > docs/cli.md"


def test_the_reference_names_every_command() -> None:
    page = reference()
    assert all(f"## edgekit {name}\n" in page for name in cli.COMMANDS)
