"""One page per run that needs nothing but itself: no network, no other file.

Every string of a manifest or a device is hostile until escaped: the template escapes all of them,
the charts' labels are escaped once more for plotly's own little markup, and a content security
policy lets only the page's two scripts run, named by their hashes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekit.files import sha256_file, write_atomic
from edgekit.report import figures, view
from edgekit.results import MANIFEST, REPORT, RunRecord
from edgekit.types import CandidateFailure, DeviceFacts, ProbeResult
from edgekit.units import megabytes, number

_TEMPLATE = "report.html.j2"
_DRAW = """
for (const figure of JSON.parse(document.getElementById("figures").textContent)) {
  const place = document.getElementById(figure.id);
  Plotly.newPlot(place, figure.data, figure.layout, {responsive: true, displayModeBar: false});
}
"""


def write_html(record: RunRecord, path: Path | None = None) -> Path:
    """Writes the page, by default as report.html into the run's own folder; returns its path."""
    path = record.path / REPORT if path is None else path
    write_atomic(path, render_html(record))
    return path


def render_html(record: RunRecord) -> str:
    """The page as text (about 5 MB, nearly all of it plotly.js)."""
    return render_page(_TEMPLATE, _charts(record), _facts(record))


def render_page(
    template: str, charts: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]
) -> str:
    """A page on its own from a template of this package.

    Args:
        template: the template's file name.
        charts: plotly figures, each with the ``id`` of the element that it is drawn into; the
            template finds them in ``charts`` by id.
        facts: what else the template shows; plain values only, which it escapes.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("edgekit.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plotly_js = get_plotlyjs()
    return environment.get_template(template).render(
        **facts,
        charts={chart["id"]: chart for chart in charts},
        # "<" would let a label end the script element; JSON may always spell it as an escape.
        figures_json=json.dumps(list(charts), allow_nan=False).replace("<", "\\u003c"),
        plotly_js=plotly_js,
        draw_js=_DRAW,
        script_hashes=" ".join(_csp_hash(s) for s in (plotly_js, _DRAW)),
    )


def _csp_hash(script: str) -> str:
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _charts(record: RunRecord) -> list[dict[str, Any]]:
    selection = record.selection
    if selection is None:
        return []
    found = figures.points(selection, record.manifest, record.probes)
    if not found:
        return []
    charts = {
        "drop": figures.drop_chart(found, selection),
        "sqnr": figures.sqnr_chart(found, selection),
        "distribution": figures.distribution_chart(found),
        "steadiness": figures.steadiness_chart(found),
    }
    return [{"id": f"chart-{name}", **figure} for name, figure in charts.items()]


def _facts(record: RunRecord) -> dict[str, Any]:
    """What the template shows besides the charts; plain values only."""
    selection, manifest = record.selection, record.manifest
    rows = () if selection is None else view.candidate_rows(selection, manifest, record.probes)
    names = [a.runtime for a in manifest.artifacts]
    device = record.probes[0].facts_before if record.probes else None
    return {
        "record": record,
        "manifest": manifest,
        "selection": selection,
        "headline": view.headline(selection, manifest),
        "rows": rows,
        "counts": _counts(rows),
        "artifacts": view.artifact_rows(manifest),
        "evaluations": [(view.evaluation_title(e), e) for e in manifest.evals],
        "failures": _failures(record),
        "device_line": "" if device is None else view.device_sentence(device),
        "device": {} if device is None else _device(device, record.probes),
        "conditions": _conditions(record),
        "versions": _versions(record),
        "legacy_note": view.LEGACY_NOTE if view.has_legacy(names) else "",
        "preview_note": view.PREVIEW_NOTE,
    }


def _counts(rows: tuple[view.CandidateRow, ...]) -> str:
    eligible = sum(r.status != "rejected" for r in rows)
    return f"{len(rows)} candidates, {eligible} within the budget"


def _failures(record: RunRecord) -> list[CandidateFailure]:
    found = [*record.failures, *(p.error for p in record.probes if p.error is not None)]
    return list(dict.fromkeys(found))


def _device(facts: DeviceFacts, probes: tuple[ProbeResult, ...]) -> Mapping[str, str]:
    temperatures = [
        f.temp_c for p in probes for f in (p.facts_before, p.facts_after) if f.temp_c is not None
    ]
    governors = {p.facts_before.governor for p in probes} - {""}
    throttled = {t for p in probes if (t := p.facts_after.throttled) is not None}
    frequencies = sorted({f // 1000 for f in facts.freq_khz})
    shown = {
        "Model": facts.model,
        "Emulated": "yes: no latency here is the device's" if facts.emulated else "",
        "Architecture": f"{facts.arch}, {facts.cpu_count} CPUs",
        "Memory": megabytes(facts.mem_total_bytes, 4),
        "System": ", ".join(t for t in (facts.os, facts.kernel, facts.libc) if t),
        "Python": facts.python,
        "Governor": ", ".join(sorted(governors)),
        "Clock": f"{', '.join(str(f) for f in frequencies)} MHz" if frequencies else "",
        "Temperature": (
            f"{min(temperatures):.0f} to {max(temperatures):.0f} °C" if temperatures else ""
        ),
        "Throttled": ", ".join(f"{t:#x}" if t else "no" for t in sorted(throttled)),
        "CPU features": " ".join(facts.cpu_features),
    }
    return {name: text for name, text in shown.items() if text}


def _conditions(record: RunRecord) -> Mapping[str, str]:
    manifest, probes = record.manifest, record.probes
    samples = sum(len(b) for p in probes for b in p.latency_ns)
    processes = sum(len(p.latency_ns) for p in probes)
    shown = {
        "Run": record.path.name,
        "Target": record.target,
        "Probed (UTC)": _period(probes),
        "Probing": _settings(probes),
        "Latency samples": f"{samples} in {processes} processes" if samples else "",
        "Model": f"{manifest.model.name} from {manifest.model.source}",
        "Weights": _short(manifest.model.weights_sha256),
        "Manifest": _manifest_digest(record.path),
        "Calibration set": ", ".join(
            _short(i) for i in sorted({a.calibration_id for a in manifest.artifacts} - {""})
        ),
        "Golden samples": f"{manifest.golden.n} of set {_short(manifest.golden.set_id)}",
    }
    for e in manifest.evals:
        value = "" if e.float_value is None else f", float {number(e.float_value)}"
        text = f"{e.n} samples, set {_short(e.set_id)}, metric {e.metric}{value}"
        shown[f"Evaluation set: {view.evaluation_title(e)}"] = text
    return {name: text for name, text in shown.items() if text}


def _manifest_digest(folder: Path) -> str:
    """Empty for a packed bundle, which has no such file beside it."""
    path = folder / MANIFEST
    return _short(sha256_file(path)) if path.is_file() else ""


def _period(probes: tuple[ProbeResult, ...]) -> str:
    times = sorted({p.started_utc for p in probes})
    return " to ".join(dict.fromkeys([times[0], times[-1]])) if times else ""


def _settings(probes: tuple[ProbeResult, ...]) -> str:
    texts = {
        f"{p.request.processes} processes of {number(p.request.budget_s)} s each" for p in probes
    }
    return "; ".join(sorted(texts))


def _versions(record: RunRecord) -> list[tuple[str, str, str]]:
    """Per runtime: what made its files, and what ran them."""
    runners: dict[str, set[str]] = {}
    artifacts = {a.id: a for a in record.manifest.artifacts}
    for p in record.probes:
        found = artifacts.get(p.request.artifact_id)
        if found is not None and p.status == "ok":
            runners.setdefault(found.runtime, set()).add(p.runtime_version)
    rows = {}
    for a in artifacts.values():
        made = ", ".join(f"{name} {version}" for name, version in sorted(a.tool_versions.items()))
        ran = ", ".join(sorted(runners.get(a.runtime, set())))
        rows[a.runtime] = (view.runtime_label(a.runtime), made, ran or view.NOTHING)
    return list(rows.values())


def _short(digest: str) -> str:
    return digest[:12]
