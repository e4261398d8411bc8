"""Layer errors for a terminal of 100 columns. Cells are plain text, as in ``terminal``."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table

from edgekit.quantize.error_advice import label
from edgekit.quantize.layer_errors import ArtifactErrors
from edgekit.report import view
from edgekit.report.terminal import plain

#: Layers that are shown; all of them are in the page and in the JSON document.
SHOWN = 10

_COLUMNS = (
    "in place: SQNR of the INT8 network's tensor against float, with all error up to there; own: "
    "of what the layer adds itself, with float inputs (simulated). Worst own first."
)


def errors_view(artifacts: Sequence[ArtifactErrors]) -> RenderableType:
    """One table per artifact: the layers that add most error, with one line of advice each."""
    parts: list[RenderableType] = []
    for errors in artifacts:
        parts += [_table(errors), plain("")]
    return Group(*parts, Padding(plain(_COLUMNS, style="dim"), (0, 0, 1, 0)))


def _table(errors: ArtifactErrors) -> RenderableType:
    table = Table(
        title=plain(heading(errors), style="bold"),
        title_justify="left",
        caption=plain(about(errors), style="dim"),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        expand=False,
    )
    table.add_column("layer", overflow="fold", max_width=24)
    table.add_column("operator", overflow="fold", max_width=14)
    table.add_column("in place\ndB", justify="right")
    table.add_column("own\ndB", justify="right")
    table.add_column("what was found, and what cures it", overflow="fold")
    for row in errors.worst(SHOWN):
        own = view.NOTHING if row.node.facts is None else f"{row.node.facts.own_sqnr_db:.1f}"
        cells = (label(row.node), row.node.op, f"{row.sqnr_db:.1f}", own, row.advice)
        table.add_row(*(plain(cell) for cell in cells))
    return table


def heading(errors: ArtifactErrors) -> str:
    """The artifact, and how good its outputs are."""
    outputs = ", ".join(f"{value:.1f}" for value in errors.output_sqnr_db)
    word = "output" if len(errors.output_sqnr_db) == 1 else "outputs"
    return f"{errors.artifact}: {word} {outputs} dB over {errors.n} samples"


def about(errors: ArtifactErrors) -> str:
    """Whose tensors were read, and what was noticed."""
    return "; ".join((f"Read: {errors.method}", *errors.notes)) + "."
