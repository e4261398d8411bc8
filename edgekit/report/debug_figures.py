"""The charts of the page about layer errors, in the style of ``figures``.

The x axis is the layers in the order in which they run. In place, one line per artifact: where it
falls, error comes in. Own, one mark per layer and recipe: how much a layer adds by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.quantize.error_advice import GOOD_DB, label
from edgekit.quantize.layer_errors import ArtifactErrors, LayerError
from edgekit.report import view
from edgekit.report.figures import COLOURS, SHAPES, Figure, frame, safe

#: Above this, errors are those of float sums, and what matters would be squeezed.
_TOP_DB = 80.0


def in_place_chart(artifacts: Sequence[ArtifactErrors]) -> Figure:
    """SQNR (dB) of every layer's tensor against float, one line per artifact."""
    order = _order(artifacts)
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "x": [order[row.node.name] for row in errors.layers],
            "y": [_shown(row.sqnr_db) for row in errors.layers],
            "name": safe(_name(errors, artifacts)),
            "line": {"color": _colour(errors, artifacts), "width": 1.8, "dash": _dash(i)},
            "marker": {"size": 4, "color": _colour(errors, artifacts)},
            "text": [_hover(row) for row in errors.layers],
            "hovertemplate": "%{text}<extra></extra>",
        }
        for i, errors in enumerate(artifacts)
    ]
    figure = frame("layer, in the order in which they run", "SQNR in place (dB)", height=440)
    figure["xaxis"] |= _ticks(artifacts, order)
    figure["hovermode"] = "closest"
    return {"data": traces, "layout": figure}


def own_chart(artifacts: Sequence[ArtifactErrors]) -> Figure:
    """SQNR (dB) of what each layer adds itself, one series per repaired program."""
    order = _order(artifacts)
    traces = []
    for i, errors in enumerate(_different(artifacts)):
        known = [row for row in errors.layers if row.node.facts is not None]
        colour = COLOURS[(i + 4) % len(COLOURS)]
        for layers, symbol in ((True, SHAPES[0]), (False, f"{SHAPES[0]}-open")):
            rows = [row for row in known if row.node.layer is layers]
            kind = "layers with weights" if layers else "other operators"
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [order[row.node.name] for row in rows],
                    "y": [
                        _shown(row.node.facts.own_sqnr_db)
                        for row in rows
                        if row.node.facts is not None
                    ],
                    "name": safe(f"{_recipe(errors)}: {kind}"),
                    "marker": {"symbol": symbol, "size": 8, "color": colour},
                    "text": [_hover(row) for row in rows],
                    "hovertemplate": "%{text}<extra></extra>",
                }
            )
    figure = frame("layer, in the order in which they run", "own SQNR (dB)", height=440)
    figure["xaxis"] |= _ticks(artifacts, order)
    figure["shapes"] = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": GOOD_DB, "y1": GOOD_DB}
        | {"line": {"color": "#9aa5b1", "width": 1.2, "dash": "dash"}},
    ]
    figure["annotations"] = [
        {
            "text": f"{GOOD_DB:.0f} dB: no cure needed above",
            "xref": "paper",
            "x": 1,
            "y": GOOD_DB,
            "xanchor": "right",
            "yanchor": "bottom",
            "showarrow": False,
            "font": {"size": 12, "color": "#52606d"},
        }
    ]
    return {"data": traces, "layout": figure}


def _order(artifacts: Sequence[ArtifactErrors]) -> dict[str, int]:
    """Positions of the nodes; those that only some artifacts have come where these have them."""
    names: list[str] = []
    for errors in artifacts:
        at = 0
        for row in errors.layers:
            if row.node.name in names:
                at = names.index(row.node.name) + 1
            else:
                names.insert(at, row.node.name)
                at += 1
    return {name: i for i, name in enumerate(names)}


def _ticks(artifacts: Sequence[ArtifactErrors], order: dict[str, int]) -> Figure:
    """A name at every few layers: all of them would not be legible."""
    labels = {row.node.name: label(row.node) for errors in artifacts for row in errors.layers}
    step = max(1, -(-len(order) // 16))
    shown = [name for name, at in order.items() if at % step == 0]
    return {
        "tickvals": [order[name] for name in shown],
        "ticktext": [safe(_short(labels[name])) for name in shown],
        "tickangle": -35,
        "tickfont": {"size": 11},
        "range": [-0.5, len(order) - 0.5],
    }


def _different(artifacts: Sequence[ArtifactErrors]) -> list[ArtifactErrors]:
    """One artifact for each repaired program: the others have the same own errors."""
    found: dict[object, ArtifactErrors] = {}
    for errors in artifacts:
        key = tuple((row.node.name, row.node.facts) for row in errors.layers if row.node.layer)
        found.setdefault((errors.recipe.name, errors.recipe.variant, key), errors)
    return list(found.values())


def _name(errors: ArtifactErrors, artifacts: Sequence[ArtifactErrors]) -> str:
    name = view.runtime_label(errors.runtime)
    alone = sum(other.runtime == errors.runtime for other in artifacts) == 1
    return name if alone else f"{name} {_recipe(errors)}"


def _recipe(errors: ArtifactErrors) -> str:
    return " ".join(part for part in (errors.recipe.name, errors.recipe.variant) if part)


def _colour(errors: ArtifactErrors, artifacts: Sequence[ArtifactErrors]) -> str:
    runtimes = sorted({other.runtime for other in artifacts})
    return COLOURS[runtimes.index(errors.runtime) % len(COLOURS)]


def _dash(index: int) -> str:
    """Runtimes often lie on one line; dashes let the ones below be seen."""
    return ("solid", "dash", "dot", "dashdot")[index % 4]


def _shown(value: float) -> float:
    return round(max(-_TOP_DB, min(_TOP_DB, value)), 2)


def _hover(row: LayerError) -> str:
    facts = row.node.facts
    own = "" if facts is None else f", own {facts.own_sqnr_db:.1f} dB"
    lines = [
        f"<b>{safe(label(row.node))}</b> {safe(row.node.op)}",
        f"in place {row.sqnr_db:.1f} dB{own}",
        safe(row.node.source),
    ]
    # Plotly takes %{...} for a variable of its own.
    return "<br>".join(line for line in lines if line).replace("%{", "% {")


def _short(text: str) -> str:
    return text if len(text) <= 22 else f"…{text[-21:]}"
