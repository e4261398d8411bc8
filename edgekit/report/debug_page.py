"""The page about layer errors: plots, the worst layers with advice, and all layers in a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.files import write_atomic
from edgekit.quantize.error_advice import label
from edgekit.quantize.layer_errors import ArtifactErrors, Node
from edgekit.report import debug_figures, view
from edgekit.report.debug_terminal import SHOWN, about, heading
from edgekit.report.html import render_page

_TEMPLATE = "debug.html.j2"


@dataclass(frozen=True, slots=True)
class _Row:
    """One node in all artifacts; SQNRs in dB as text, in the order of the artifacts."""

    layer: str
    operator: str
    source: str
    own: str
    in_place: tuple[str, ...]


def write_debug_page(model: str, artifacts: Sequence[ArtifactErrors], path: Path) -> Path:
    """Writes the page; returns its path."""
    write_atomic(path, render_debug_page(model, artifacts))
    return path


def render_debug_page(model: str, artifacts: Sequence[ArtifactErrors]) -> str:
    """The page as text; it needs no network and no other file."""
    charts = []
    if artifacts:
        charts = [
            {"id": "chart-in-place", **debug_figures.in_place_chart(artifacts)},
            {"id": "chart-own", **debug_figures.own_chart(artifacts)},
        ]
    facts = {
        "model": model,
        "headline": headline(artifacts),
        "sections": [(heading(a), about(a), a.worst(SHOWN)) for a in artifacts],
        "columns": [a.artifact.removeprefix(f"{model}-") for a in artifacts],
        "rows": _rows(artifacts),
        "label": label,
        "nothing": view.NOTHING,
    }
    return render_page(_TEMPLATE, charts, facts)


def headline(artifacts: Sequence[ArtifactErrors]) -> str:
    """The layer that adds most error, in one sentence."""
    worst = [row for errors in artifacts for row in errors.worst(1)]
    known = [row for row in worst if row.node.facts is not None]
    if not known:
        return "No layer's own error is known."
    row = min(known, key=lambda r: r.node.facts.own_sqnr_db if r.node.facts else 0.0)
    assert row.node.facts is not None
    return (
        f"{label(row.node)} ({row.node.op}) adds most error by itself: "
        f"{row.node.facts.own_sqnr_db:.1f} dB"
    )


def _rows(artifacts: Sequence[ArtifactErrors]) -> list[_Row]:
    nodes: dict[str, Node] = {}
    for errors in artifacts:
        for row in errors.layers:
            nodes.setdefault(row.node.name, row.node)
    found = [{row.node.name: row.sqnr_db for row in errors.layers} for errors in artifacts]
    return [
        _Row(
            layer=label(node),
            operator=node.op,
            source=node.source,
            own=view.NOTHING if node.facts is None else f"{node.facts.own_sqnr_db:.1f}",
            in_place=tuple(
                f"{values[name]:.1f}" if name in values else view.NOTHING for values in found
            ),
        )
        for name, node in nodes.items()
    ]
