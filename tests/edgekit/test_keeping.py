"""Which artifacts go into the bundle."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgekit.pipeline.keeping import worth_keeping


def made(name: str, variant: str, drop: float, *, precision: str = "int8", sha: str = "") -> Any:
    return SimpleNamespace(
        id=name,
        recipe=SimpleNamespace(variant=variant, precision=precision),
        export=SimpleNamespace(sha256=sha or name),
        evaluation=SimpleNamespace(choose=SimpleNamespace(drop=drop)),
    )


FLOAT = made("float", "", 0.0, precision="fp32")


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ([FLOAT, made("base", "", 0.08), made("fold", "fold", 0.05)], ["float", "base", "fold"]),
        ([FLOAT, made("base", "", 0.05), made("fold", "fold", 0.08)], ["float", "base"]),
        # Exactly the budget, as 1 - 0.95 gives it.
        ([made("base", "", 0.0), made("fold", "fold", 1 - 0.95)], ["base", "fold"]),
        # None keeps it: the best of them is what can be shown.
        ([made("base", "", 0.08), made("a", "a", 0.07), made("b", "b", 0.06)], ["base", "b"]),
        ([made("base", "", 0.01, sha="1"), made("same", "same", 0.01, sha="1")], ["base"]),
        ([FLOAT], ["float"]),
    ],
)
def test_variants_have_to_differ_and_to_keep_the_budget(found: list[Any], kept: list[str]) -> None:
    said: list[str] = []
    assert [one.id for one in worth_keeping(found, 0.05, said.append)] == kept
    assert len(said) == len(found) - len(kept)
