"""The charts of the page as plotly.js figures (plain dicts, so that plotly is needed as JS only).

Colour says the runtime (Okabe & Ito's palette, told apart by colour-blind readers), filled or open
says int8 or float, the shape says how many threads; so no fact hangs on colour alone.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.explain import latency, threads_text
from edgekit.report import view
from edgekit.types import Candidate, Interval, Manifest, ProbeResult, Selection
from edgekit.units import number

Figure = dict[str, Any]

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
SHAPES = ("circle", "square", "diamond", "triangle-up", "pentagon", "star")
_INK, _FAINT, _LIMIT = "#1f2933", "#e4e7eb", "#9b2226"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
_TAIL_DOTS = 40


@dataclass(frozen=True, slots=True)
class Point:
    """A candidate that was timed."""

    candidate: Candidate
    status: view.Status
    label: str
    interval: Interval
    probe: ProbeResult


def points(
    selection: Selection, manifest: Manifest, probes: Sequence[ProbeResult]
) -> tuple[Point, ...]:
    """The timed candidates, fastest first."""
    results = view.newest(probes)
    artifacts = {a.id: a for a in manifest.artifacts}
    found = []
    for i, candidate in enumerate(selection.candidates):
        interval = latency(candidate, selection.objective)
        probe = results.get((candidate.artifact_id, candidate.threads))
        if interval is not None and probe is not None:
            kind = view.kind_of(candidate, artifacts.get(candidate.artifact_id), manifest)
            label = f"{candidate.runtime} {kind}, {candidate.threads} thr"
            status = view.status_of(selection, i)
            found.append(Point(candidate, status, label, interval, probe))
    return tuple(sorted(found, key=lambda p: (p.interval.value, p.label)))


def drop_chart(found: Sequence[Point], selection: Selection) -> Figure:
    """Accuracy drop (0..1, lower is better) over latency, with the budget as a line."""
    limit = selection.budget.max_drop
    shown = [p for p in found if p.candidate.drop is not None]
    drops = [p.candidate.drop for p in shown if p.candidate.drop is not None]
    top = max([limit * 1.25, *(d * 1.12 for d in drops), 0.005])
    bottom = min([-0.06 * top, *(d * 1.12 for d in drops)])
    figure = _scatter(shown, drops, selection, "accuracy drop on the device (1 = all)")
    figure["layout"]["yaxis"] |= {"range": [bottom, top], "zeroline": True, "zerolinecolor": "#999"}
    figure["layout"]["shapes"] = [
        {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": limit, "y1": top}
        | {"fillcolor": _LIMIT, "opacity": 0.06, "line": {"width": 0}, "layer": "below"},
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": limit, "y1": limit}
        | {"line": {"color": _LIMIT, "width": 1.5, "dash": "dash"}},
    ]
    figure["layout"]["annotations"].append(
        {
            "text": f"budget {number(limit)}: above is not eligible",
            "xref": "paper",
            "x": 1,
            "y": limit,
            "xanchor": "right",
            "yanchor": "bottom",
            "showarrow": False,
            "font": {"color": _LIMIT, "size": 12},
        }
    )
    return figure


def sqnr_chart(found: Sequence[Point], selection: Selection) -> Figure:
    """SQNR of the device's outputs against float (dB, higher is better) over latency."""
    values = {p.label: view.worst_sqnr(p.probe) for p in found}
    shown = [p for p in found if values[p.label] is not None]
    heights = [v for p in shown if (v := values[p.label]) is not None]
    figure = _scatter(shown, heights, selection, "SQNR on the device against float (dB)")
    low, high = min([0.0, *heights]), max([40.0, *heights])
    figure["layout"]["yaxis"]["range"] = [low - 0.05 * (high - low), high + 0.12 * (high - low)]
    return figure


def distribution_chart(found: Sequence[Point]) -> Figure:
    """All latency samples per candidate: box p25-p75, whiskers p5-p95, dots for the slowest 1 %."""
    traces: list[Figure] = []
    for p in found:
        samples = _all_samples(p.probe)
        traces.append(_box(p, samples, found))
        tail = np.sort(samples)[-_tail_size(samples.size) :]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": _rounded(tail),
                "y": [safe(p.label)] * len(tail),
                "marker": {"color": _colour(p, found), "size": 4, "opacity": 0.5},
                "hovertemplate": "%{x:.4~g} ms<extra>slowest 1 %</extra>",
                "showlegend": False,
            }
        )
    layout = frame(f"{_latency(found)} (ms)", "", height=_rows_height(found))
    shown = ("lowerfence", "upperfence", "x")  # boxes have their ends, dots their place
    layout["xaxis"] |= _time_axis([x for t in traces for name in shown for x in t.get(name, [])])
    layout["yaxis"] |= _row_axis(found)
    return {"data": traces, "layout": layout}


def steadiness_chart(found: Sequence[Point]) -> Figure:
    """Latency relative to the candidate's own median (%), with the median of each process."""
    traces: list[Figure] = []
    for p in found:
        centre = p.candidate.p50_ns.value / 1e6 if p.candidate.p50_ns is not None else 1.0
        traces.append(_box(p, (_all_samples(p.probe) / centre - 1) * 100, found))
        medians = [float(np.median(b)) / 1e6 for b in p.probe.latency_ns if len(b)]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [round((m / centre - 1) * 100, 3) for m in medians],
                "y": [safe(p.label)] * len(medians),
                "marker": {
                    "color": "white",
                    "size": 8,
                    "symbol": "diamond",
                    "line": {"color": _INK, "width": 1.5},
                },
                "hovertemplate": "%{x:+.2f} %<extra>median of one process</extra>",
                "showlegend": False,
            }
        )
    layout = frame("relative to own p50 (%)", "", height=_rows_height(found))
    layout["xaxis"] |= {"zeroline": True, "zerolinecolor": "#999", "tickformat": "~g"}
    layout["yaxis"] |= _row_axis(found)
    return {"data": traces, "layout": layout}


def _scatter(
    shown: Sequence[Point], heights: Sequence[float], selection: Selection, y_title: str
) -> Figure:
    traces: list[Figure] = []
    thread_counts = sorted({p.candidate.threads for p in shown})
    both = list(zip(shown, heights, strict=True))
    # Ties may lie on one spot: the chosen is drawn last and smaller, so that a rim of the other
    # stays visible.
    for p, y in sorted(both, key=lambda pair: pair[0].status == "chosen"):
        x = p.interval.value / 1e6
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [round(x, 6)],
                "y": [y],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [p.interval.high / 1e6 - x],
                    "arrayminus": [x - p.interval.low / 1e6],
                    "thickness": 1.5,
                    "width": 4,
                    "color": _colour(p, shown),
                },
                "marker": {
                    "symbol": _symbol(p, thread_counts),
                    "color": _colour(p, shown),
                    "size": 19 if p.status == "tied" else 13,
                    "line": {"width": 2, "color": _colour(p, shown)},
                    "opacity": 0.95 if p.candidate.eligible else 0.55,
                },
                "legendgroup": safe(p.candidate.runtime),
                "showlegend": False,
                "hovertemplate": _hover(p) + "<extra></extra>",
            }
        )
    layout = frame(f"{_latency(shown)} {selection.objective} (ms)", y_title, height=460)
    layout["xaxis"] |= _time_axis([p.interval.value / 1e6 for p in shown])
    slowest = max((p.interval.value for p in shown), default=0.0)
    layout["annotations"] = [
        _chosen_mark(p, y, layout["xaxis"]["type"], left=p.interval.value > 0.8 * slowest)
        for p, y in both
        if p.status == "chosen"
    ]
    return {"data": [*traces, *_legend(shown, thread_counts)], "layout": layout}


def _latency(points: Sequence[Point]) -> str:
    return "emulated latency" if any(p.candidate.emulated for p in points) else "latency"


def _chosen_mark(p: Point, y: float, axis: str, *, left: bool) -> Figure:
    """``left``: on that side of its point, where the plot ends on the other."""
    x = p.interval.value / 1e6
    return {
        "text": "<b>chosen</b>",
        "x": math.log10(x) if axis == "log" else x,
        "y": y,
        "ax": -26 if left else 26,
        "ay": -38,
        "arrowhead": 2,
        "arrowwidth": 1.5,
        "standoff": 9,
        "arrowcolor": _INK,
        "font": {"color": _INK, "size": 13},
        "bgcolor": "rgba(255,255,255,0.85)",
    }


def _legend(shown: Sequence[Point], thread_counts: Sequence[int]) -> list[Figure]:
    """Entries that say what colour, filling and shape mean; they draw nothing."""

    def entry(name: str, symbol: str, colour: str, group: str = "") -> Figure:
        marker = {"symbol": symbol, "color": colour, "size": 11, "line": {"width": 2}}
        marker["line"] = {"width": 2, "color": colour}
        return {
            "type": "scatter",
            "mode": "markers",
            "x": [None],
            "y": [None],
            "name": safe(name),
            "marker": marker,
            "legendgroup": safe(group or name),
            "hoverinfo": "skip",
        }

    runtimes = list(dict.fromkeys(p.candidate.runtime for p in shown))
    colours = {p.candidate.runtime: _colour(p, shown) for p in shown}
    entries = [entry(view.runtime_label(r), "circle", colours[r], r) for r in runtimes]
    entries += [entry("int8", "circle", "#777"), entry("float", "circle-open", "#777")]
    if len(thread_counts) > 1:
        entries += [
            entry(threads_text(n), SHAPES[i % len(SHAPES)], "#777")
            for i, n in enumerate(thread_counts)
        ]
    return entries


def _symbol(p: Point, thread_counts: Sequence[int]) -> str:
    shape = SHAPES[thread_counts.index(p.candidate.threads) % len(SHAPES)]
    return shape if p.candidate.precision == "int8" else f"{shape}-open"


def _colour(p: Point, shown: Sequence[Point]) -> str:
    runtimes = sorted({q.candidate.runtime for q in shown})
    return COLOURS[runtimes.index(p.candidate.runtime) % len(COLOURS)]


def _hover(p: Point) -> str:
    interval, drop = p.interval, p.candidate.drop
    lines = [
        f"<b>{safe(p.label)}</b>",
        f"{number(interval.value / 1e6)} ms ({view.interval_range(interval)})",
        f"drop {view.NOTHING if drop is None else number(drop)}",
        safe(p.candidate.reason[:120]),
    ]
    # Plotly takes %{...} for a variable of its own.
    return "<br>".join(lines).replace("%{", "% {")


def safe(text: str) -> str:
    """Text that plotly shows as it is: its labels know a few tags, links among them."""
    return html.escape(text, quote=False)


def _box(p: Point, samples: np.ndarray[Any, Any], found: Sequence[Point]) -> Figure:
    low, q1, centre, q3, high = np.quantile(samples, [0.05, 0.25, 0.5, 0.75, 0.95])
    colour = _colour(p, found)
    return {
        "type": "box",
        "orientation": "h",
        "y": [safe(p.label)],
        "q1": _rounded([q1]),
        "median": _rounded([centre]),
        "q3": _rounded([q3]),
        "lowerfence": _rounded([low]),
        "upperfence": _rounded([high]),
        "line": {"color": colour, "width": 1.5},
        "fillcolor": colour + ("99" if p.candidate.precision == "int8" else "1a"),
        "width": 0.6,
        "showlegend": False,
        "hoverinfo": "x",
    }


def _all_samples(probe: ProbeResult) -> np.ndarray[Any, Any]:
    """In ms, of all processes."""
    blocks = [np.asarray(b, dtype=np.float64) for b in probe.latency_ns if len(b)]
    joined: np.ndarray[Any, Any] = np.concatenate(blocks) / 1e6
    return joined


def _tail_size(samples: int) -> int:
    return max(1, min(_TAIL_DOTS, samples // 100))


def _rounded(values: Any) -> list[float]:
    return [float(f"{v:.6g}") for v in values]


def _time_axis(values: Sequence[float]) -> Figure:
    """Logarithmic where the slowest takes more than four times as long as the fastest."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    if low <= 0 or high / low <= 4:
        return {"type": "linear", "rangemode": "tozero"}
    low, high = low / 1.15, high * 1.15
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low > 30 else (1, 1.5, 2, 3, 5, 7)
    ticks = [float(f"{s * 10.0**d:.6g}") for d in decades for s in steps]
    ticks = [t for t in ticks if low <= t <= high]
    return {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": [number(t) for t in ticks],
        "tickangle": 0,
    }


def _row_axis(found: Sequence[Point]) -> Figure:
    order = [safe(p.label) for p in reversed(found)]
    texts = [
        f"<b>{safe(p.label)}</b>" if p.status == "chosen" else safe(p.label)
        for p in reversed(found)
    ]
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": order,
        "tickvals": order,
        "ticktext": texts,
        "tickfont": {"size": 12},
        "showgrid": False,
    }


def _rows_height(found: Sequence[Point]) -> int:
    return 110 + 26 * max(3, len(found))


def frame(x_title: str, y_title: str, *, height: int) -> Figure:
    """The layout that all charts share, ``height`` in pixels; the y title may be empty."""
    axis = {"gridcolor": _FAINT, "automargin": True, "zeroline": False, "ticks": "outside"}
    axis |= {"tickcolor": _FAINT, "linecolor": "#9aa5b1", "showline": True}
    return {
        "height": height,
        "margin": {"l": 10, "r": 16, "t": 16, "b": 10},
        "font": {"family": _FONT, "size": 13, "color": _INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "hoverlabel": {"bgcolor": "white", "font": {"color": _INK}, "align": "left"},
        "legend": {"orientation": "h", "y": -0.2, "x": 0, "itemwidth": 30},
        "xaxis": {**axis, "title": {"text": x_title}},
        "yaxis": {**axis, "title": {"text": y_title}} if y_title else dict(axis),
        "annotations": [],
        "boxmode": "overlay",
    }
