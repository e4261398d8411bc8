"""Results turned into rows of text, once, so that the terminal and the page say the same.

Strings from a manifest or a device are passed on as they are; who draws them escapes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

from edgekit.explain import latency, threads_text
from edgekit.registry import runtimes
from edgekit.types import (
    Artifact,
    Candidate,
    DeviceFacts,
    Evaluation,
    Interval,
    Manifest,
    ProbeResult,
    Selection,
)
from edgekit.units import milliseconds, number

Status = Literal["chosen", "tied", "eligible", "rejected"]

NOTHING = "–"
#: In per cent; a wider interval says only that nothing is known.
MAX_SPREAD = 999
LEGACY_NOTE = (
    "torchscript (legacy): deprecated upstream in favour of torch.export, kept as people ship it."
)
PREVIEW_NOTE = "SQNR, agreement and drop here are this host's preview; the device's own decide."


@dataclass(frozen=True, slots=True)
class CandidateRow:
    """One candidate in words. Times in ms, memory and size in MB (10^6 bytes)."""

    status: Status
    artifact_id: str
    runtime: str
    kind: str
    threads: str
    p50: str
    interval: str
    spread: str
    p90: str
    load: str
    first: str
    rss: str
    size: str
    drop: str
    sqnr: str
    reason: str


@dataclass(frozen=True, slots=True)
class Score:
    """One artifact on one evaluation set, on the host."""

    sqnr: str = NOTHING
    agreement: str = NOTHING
    drop: str = NOTHING


@dataclass(frozen=True, slots=True)
class ArtifactRow:
    """One artifact in words; ``scores`` go with `evaluations` of the manifest."""

    artifact_id: str
    runtime: str
    recipe: str
    steps: str
    size: str
    ratio: str
    int8_share: str
    delegated: str
    outside: str
    scores: tuple[Score, ...]
    made: bool = True


def runtime_label(name: str) -> str:
    """``torchscript (legacy)`` where upstream has deprecated the format, else the name."""
    entry = runtimes().get(name)
    return f"{name} (legacy)" if entry is not None and entry.legacy else name


def has_legacy(names: Sequence[str]) -> bool:
    return any(runtime_label(name) != name for name in names)


def candidate_rows(
    selection: Selection, manifest: Manifest, probes: Sequence[ProbeResult]
) -> tuple[CandidateRow, ...]:
    """One row per candidate, in the selection's order."""
    results = newest(probes)
    artifacts = {a.id: a for a in manifest.artifacts}
    kinds = {
        c.artifact_id: kind_of(c, artifacts.get(c.artifact_id), manifest)
        for c in selection.candidates
    }
    # Beside a table's own columns, a whole artifact id is more than a reason needs.
    names = {c.artifact_id: f"{c.runtime} {kinds[c.artifact_id]}" for c in selection.candidates}
    return tuple(
        _candidate_row(
            replace(candidate, reason=_shortened(candidate.reason, names)),
            status_of(selection, i),
            kinds[candidate.artifact_id],
            results.get((candidate.artifact_id, candidate.threads)),
        )
        for i, candidate in enumerate(selection.candidates)
    )


def _shortened(reason: str, names: Mapping[str, str]) -> str:
    # Longest first: one id may begin with another.
    for artifact_id in sorted(names, key=len, reverse=True):
        reason = reason.replace(artifact_id, names[artifact_id])
    return reason


def newest(probes: Sequence[ProbeResult]) -> dict[tuple[str, int], ProbeResult]:
    """The result that counts of each candidate: by artifact id and threads."""
    ordered = sorted(probes, key=lambda p: p.started_utc)
    return {(p.request.artifact_id, p.request.threads): p for p in ordered}


def status_of(selection: Selection, index: int) -> Status:
    if index == selection.chosen:
        return "chosen"
    if index in selection.tie_set:
        return "tied"
    return "eligible" if selection.candidates[index].eligible else "rejected"


def kind_of(candidate: Candidate, artifact: Artifact | None, manifest: Manifest) -> str:
    """``int8``, with what sets a variant apart, and whether it was emulated."""
    kind: str = candidate.precision
    if artifact is not None:
        stem = f"{manifest.model.name}-{artifact.runtime}-{artifact.recipe.name}"
        variant = artifact.id.removeprefix(stem).strip("-")
        if variant and variant != artifact.id:
            kind += f" {variant}"
    return f"{kind}, emulated" if candidate.emulated else kind


def _candidate_row(
    candidate: Candidate, status: Status, kind: str, probe: ProbeResult | None
) -> CandidateRow:
    p50, p90 = candidate.p50_ns, candidate.p90_ns
    return CandidateRow(
        status=status,
        artifact_id=candidate.artifact_id,
        runtime=runtime_label(candidate.runtime),
        kind=kind,
        threads=str(candidate.threads) if candidate.threads else NOTHING,
        p50=NOTHING if p50 is None else number(p50.value / 1e6),
        interval=NOTHING if p50 is None else interval_range(p50),
        spread="" if p50 is None else spread(p50),
        p90=NOTHING if p90 is None else number(p90.value / 1e6),
        load=_typical_ms(() if probe is None else probe.load_ns),
        first=_typical_ms(() if probe is None else probe.first_ns),
        rss=_figure(candidate.peak_rss_bytes, 1e6),
        size=_figure(candidate.size_bytes or None, 1e6),
        drop=_figure(candidate.drop),
        sqnr=_device_sqnr(probe),
        reason=candidate.reason,
    )


def spread(interval: Interval) -> str:
    """Half the interval in per cent of the value: ``±0.6 %``; ``?`` of a single process."""
    if interval.value <= 0:
        return ""
    if not interval.confidence:
        return "?"
    percent = (interval.high - interval.low) / 2 / interval.value * 100
    return f"±{percent:.1f} %" if percent < MAX_SPREAD else f"> ±{MAX_SPREAD} %"


def interval_range(interval: Interval) -> str:
    """The interval in ms: ``4.1 to 4.3``."""
    if not interval.confidence:
        return "interval unknown"
    return f"{number(interval.low / 1e6)} to {number(interval.high / 1e6)}"


def _typical_ms(values: Sequence[int]) -> str:
    return number(median(values) / 1e6) if values else NOTHING


def _figure(value: float | None, unit: float = 1.0) -> str:
    return NOTHING if value is None else number(value / unit)


def _device_sqnr(probe: ProbeResult | None) -> str:
    worst = worst_sqnr(probe)
    return NOTHING if worst is None else f"{worst:.1f}"


def worst_sqnr(probe: ProbeResult | None) -> float | None:
    """Of the device's outputs against float, in dB: that of the worst output tensor."""
    if probe is None:
        return None
    return min((g.sqnr_db_float for g in probe.golden), default=None)


def artifact_rows(manifest: Manifest) -> tuple[ArtifactRow, ...]:
    """One row per artifact, float twins first within a runtime."""
    floats = {a.runtime: a.size_bytes for a in manifest.artifacts if a.precision == "fp32"}
    order = sorted(
        manifest.artifacts, key=lambda a: (_first_seen(manifest, a), a.precision != "fp32", a.id)
    )
    return tuple(_artifact_row(a, floats.get(a.runtime), manifest) for a in order)


def _first_seen(manifest: Manifest, artifact: Artifact) -> int:
    return [a.runtime for a in manifest.artifacts].index(artifact.runtime)


def _artifact_row(artifact: Artifact, float_size: int | None, manifest: Manifest) -> ArtifactRow:
    found = artifact.inspection
    stem = f"{manifest.model.name}-{artifact.runtime}-"
    ratio = NOTHING
    if float_size and artifact.precision != "fp32":
        ratio = f"{artifact.size_bytes / float_size:.3f}"
    outside = () if found is None else found.outside_ops
    return ArtifactRow(
        artifact_id=artifact.id,
        runtime=runtime_label(artifact.runtime),
        recipe=artifact.id.removeprefix(stem),
        steps=", ".join(artifact.recipe.steps) or NOTHING,
        size=number(artifact.size_bytes / 1e6),
        ratio=ratio,
        int8_share=NOTHING if found is None else _percent(found.int8_mac_share),
        delegated=NOTHING if found is None else _percent(found.delegated_share),
        outside=", ".join(f"{o.count}× {o.op}" for o in outside) or NOTHING,
        scores=tuple(_score(e, artifact.id) for e in manifest.evals),
    )


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{number(share * 100)} %"


def _score(evaluation: Evaluation, artifact_id: str) -> Score:
    for result in evaluation.results:
        if result.artifact_id == artifact_id:
            worst = min((o.sqnr_db for o in result.outputs), default=None)
            return Score(
                sqnr=NOTHING if worst is None else f"{worst:.1f}",
                agreement=_figure(result.top1_agreement),
                drop=number(result.drop),
            )
    return Score()


def evaluation_title(evaluation: Evaluation) -> str:
    """What an evaluation set is called where its results are shown."""
    return {"choose": "choose", "report": "test"}[evaluation.role]


def device_sentence(facts: DeviceFacts) -> str:
    """The device on one line."""
    cpus = f"{facts.cpu_count} CPU{'' if facts.cpu_count == 1 else 's'}"
    memory = f"{number(facts.mem_total_bytes / 1e9, 2)} GB RAM"
    parts = [facts.model or "unknown device", facts.arch, cpus, memory, facts.os]
    text = ", ".join(p for p in parts if p)
    return f"EMULATED {text}" if facts.emulated else text


def headline(selection: Selection | None, manifest: Manifest) -> str:
    """The verdict in one sentence."""
    if selection is None:
        return f"{manifest.model.name}: {len(manifest.artifacts)} artifacts, none selected yet."
    if selection.chosen is None:
        return f"No candidate of {manifest.model.name} is within the budget."
    best = selection.candidates[selection.chosen]
    interval = latency(best, selection.objective)
    assert interval is not None
    text = (
        f"{runtime_label(best.runtime)} {best.precision} with {threads_text(best.threads)}: "
        f"{milliseconds(interval.value)} at {selection.objective}"
    )
    if best.emulated:
        text += " (emulated)"
    rival = _fastest_float(selection)
    if best.precision == "int8" and rival is not None and rival.emulated == best.emulated:
        other = latency(rival, selection.objective)
        assert other is not None
        text += f", {number(other.value / interval.value)}× as fast as the fastest float candidate"
    if best.drop is not None:
        text += f", drop {number(best.drop)} of {number(selection.budget.max_drop)} allowed"
    return text + "."


def _fastest_float(selection: Selection) -> Candidate | None:
    """By value, whether it is eligible or not: the question is what INT8 brings."""
    timed = [
        (interval.value, i)
        for i, c in enumerate(selection.candidates)
        if c.precision == "fp32" and (interval := latency(c, selection.objective)) is not None
    ]
    return selection.candidates[min(timed)[1]] if timed else None
