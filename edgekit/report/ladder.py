"""The repair ladder as a table: which rung bought how many dB, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from edgekit.report.terminal import plain, plain_table
from edgekit.types import RecipeLog, RungResult
from edgekit.units import milliseconds


@dataclass(frozen=True)
class LadderView:
    """One ladder and the artifacts that were made from where it ended."""

    title: str
    artifacts: tuple[str, ...]
    rungs: tuple[RungResult, ...]

    @property
    def gains_db(self) -> tuple[float | None, ...]:
        """What each rung gained over the best before it; None for the first."""
        gains: list[float | None] = []
        best = 0.0
        for rung in self.rungs:
            gains.append(rung.sqnr_db - best if gains else None)
            best = rung.sqnr_db if rung.kept else best
        return tuple(gains)


def ladders(log: RecipeLog) -> list[LadderView]:
    """The ladders of a bundle; runtimes that share one are named together."""
    found: dict[tuple[RungResult, ...], list[str]] = {}
    for artifact, rungs in log.ladders.items():
        found.setdefault(rungs, []).append(artifact)
    return [LadderView(_title(log.recipes, ids), tuple(ids), r) for r, ids in found.items()]


def _title(recipes: Mapping[str, object], ids: Sequence[str]) -> str:
    recipe = recipes[ids[0]]
    name = getattr(recipe, "name", "")
    variant = getattr(recipe, "variant", "")
    return f"Repair of {name}" + (f", variant {variant}" if variant else "")


def ladder_table(view: LadderView) -> Table:
    """One ladder for a terminal of 100 columns. Simulated on the evaluation set: a preview."""
    table = plain_table(f"{view.title} (simulated on the evaluation set)")
    numeric = ("SQNR dB", "gain", "drop", "s", "adds")
    for name in ("rung", "", *numeric, "what"):
        table.add_column(name, justify="right" if name in numeric else "left", overflow="fold")
    for rung, gain in zip(view.rungs, view.gains_db, strict=True):
        cells = (
            rung.rung,
            "kept" if rung.kept else "no",
            f"{rung.sqnr_db:.1f}",
            "" if gain is None else f"{gain:+.1f}",
            f"{rung.drop:.3f}",
            f"{rung.seconds:.0f}",
            milliseconds(rung.added_ns) if rung.added_ns else "",
            rung.note or "nothing to change",
        )
        table.add_row(*(plain(cell) for cell in cells), style="" if rung.kept else "dim")
    return table
