"""What people read in a terminal: all of it is there, within 100 columns, and none is markup."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from edgekit import codec, results
from edgekit.report import terminal, view
from edgekit.results import QueryResult, RunDir, query_runs
from edgekit.select import select
from edgekit.types import Activation, Budget, CandidateFailure
from tests.fixtures.made_up import (
    CRASHED_EXPORT,
    FACTS,
    MODEL,
    artifact,
    demo,
    digest,
    manifest,
    probe,
)

BUDGET = Budget(max_drop=0.1)


def shown(what: RenderableType, *, width: int = 100) -> str:
    console = Console(
        file=io.StringIO(), width=width, highlight=False, emoji=False, color_system=None
    )
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def words(text: str) -> str:
    """Without the line breaks of wrapped cells."""
    return " ".join(text.split())


def stored(root: Path) -> results.RunRecord:
    bundle, probes, failures = demo()
    run = RunDir.create(root, bundle.model.name, "made-up-board", codec.to_json(bundle))
    for one in probes:
        run.append_probe(one)
    run.write_failures(failures)
    results.reselect(run.path, BUDGET)
    return results.load(run.path)


def line_with(text: str, *parts: str) -> str:
    return next(line for line in text.splitlines() if all(p in line for p in parts))


def test_quantize_summary_has_every_artifact_with_its_figures() -> None:
    bundle, _, failures = demo()
    text = shown(terminal.quantize_summary(bundle, failures))
    assert max(map(len, text.splitlines())) <= 100
    row = line_with(text, "executorch", "static_wi8_ai8")
    expected = "executorch static_wi8_ai8 5.11 0.274 100 % 20.1 0.95 0.05 20.1 0.95 0.05"
    assert words(row) == expected
    assert line_with(text, "onnx", "static_wi8_ai8", "failed")
    assert text.count("torchscript (legacy) ") == 2
    assert "deprecated upstream" in text and "host's preview" in text
    assert "Fatal Python error: Segmentation fault" in text and CRASHED_EXPORT.remedy in text


def test_no_footnote_without_torchscript() -> None:
    text = shown(terminal.quantize_summary(manifest([artifact("tflite", "int8")])))
    assert "deprecated" not in text


def test_a_run_shows_the_verdict_every_candidate_and_why(tmp_path: Path) -> None:
    text = shown(terminal.run_view(stored(tmp_path)))
    assert max(map(len, text.splitlines())) <= 100
    flat = words(text)
    assert "executorch int8 with 2 threads: 26.3 ms at p50, 1.65× as fast as the fastest" in flat
    assert "measured on made-up-board: Made-up board rev 1.5, aarch64, 4 CPUs" in flat
    chosen = line_with(text, "▶")
    assert chosen.split()[1:7] == ["executorch", "int8", "2", "26.3", "±0.7", "%"]
    assert "tied with the chosen;" in line_with(text, "≈")
    assert "slower: 43.3 ms vs 26.3 ms" in line_with(text, "tflite", "fp32", "  2 ")
    assert "drop 0.208 > budget 0.1" in line_with(text, "✗ torchscript (legacy) int8   2")
    assert "exporter crashed: SIGSEGV" in line_with(text, "✗ onnx")
    assert "Illegal instruction (core dumped)" in text


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_nothing_is_cut_off_whatever_the_width(tmp_path: Path, width: int) -> None:
    record = stored(tmp_path)
    text = shown(terminal.run_view(record), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text


def test_emulated_results_are_labelled_as_such() -> None:
    bundle = manifest([artifact("tflite", "int8")])
    facts = replace(FACTS, emulated=True)
    probes = [probe(bundle.artifacts[0], ms=4, facts=facts)]
    text = shown(terminal.selection_table(select(bundle, probes, BUDGET), bundle, probes))
    assert "emulated on made-up-board: EMULATED Made-up board" in words(text)
    assert "(emulated)" in text and "int8, emulated" in words(text)


def test_a_run_without_selection_and_with_damage_says_so(tmp_path: Path) -> None:
    record = stored(tmp_path)
    (record.path / "selection.json").write_text("{")
    text = words(shown(terminal.run_view(results.load(record.path))))
    assert "no selection yet" in text and "! selection.json: not valid JSON" in text


def test_nothing_eligible(tmp_path: Path) -> None:
    bundle, probes, failures = demo()
    found = select(bundle, probes, Budget(max_drop=0.1, max_size_bytes=1), "p50", failures)
    text = words(shown(terminal.selection_table(found, bundle, probes)))
    assert f"No candidate of {MODEL} is within the budget" in text and "▶" not in text


def test_hostile_text_is_shown_and_does_nothing() -> None:
    nasty = "[bold red]x[/] [/nope] \x1b[2J\x9b31m\r\x07 :smile:"
    bundle = manifest([replace(artifact("tflite", "int8"), runtime=nasty)])
    failure = CandidateFailure(nasty, nasty, "export", nasty, nasty, nasty, (nasty,))
    text = shown(terminal.quantize_summary(bundle, [failure]))
    text += shown(terminal.failures_list([failure]))
    text += shown(terminal.query_table(QueryResult((nasty,), ((nasty,),), (nasty,))))
    text += shown(terminal.status_table([], [nasty], target=nasty))
    assert not set(text) & {"\x1b", "\x9b", "\x07", "\r"}
    assert "[bold red]x[/]" in text and ":smile:" in text


def test_status() -> None:
    since, new, old = "2025-11-02T10:15:00Z", digest("new"), digest("old")
    active = [
        Activation(MODEL, new, f"{MODEL}-tflite-fp32", "tflite", 2, None, since),
        Activation("m", new, "m-torchscript-fp32", "torchscript", 1, old, since),
    ]
    text = shown(terminal.status_table(active, ["blob 12 is damaged"], target="local"))
    assert max(map(len, text.splitlines())) <= 100
    row = words(line_with(text, MODEL))
    assert row == f"{MODEL} fp32 tflite 2 {new[:12]} – 2025-11-02 10:15"
    assert "(legacy)" in text and "! blob 12 is damaged" in text
    assert "Nothing is active on local." in shown(terminal.status_table([], target="local"))


def test_runs_and_queries(tmp_path: Path) -> None:
    assert "no runs yet" in shown(terminal.runs_table(query_runs(tmp_path)))
    record = stored(tmp_path)
    text = shown(terminal.runs_table(query_runs(tmp_path)))
    assert record.path.name[:30] in text and "executorch int8" in text
    assert "26.3" in text and max(map(len, text.splitlines())) <= 100
    (record.path / "selection.json").unlink()
    assert "not selected yet" in shown(terminal.runs_table(query_runs(tmp_path)))
    found = query_runs(tmp_path, "SELECT artifact_id, threads FROM probes WHERE threads = 2")
    text = shown(terminal.query_table(found))
    assert "7 rows" in text and "artifact_id" in text


def test_a_variant_is_told_from_its_base() -> None:
    base = artifact("tflite", "int8")
    variant = replace(base, id=f"{base.id}-dw3", sha256=digest("v"))
    bundle = manifest([base, variant])
    probes = [probe(base, ms=4), probe(variant, ms=5)]
    rows = view.candidate_rows(select(bundle, probes, BUDGET), bundle, probes)
    assert {r.kind for r in rows} == {"int8", "int8 dw3"}
    assert [r.recipe for r in view.artifact_rows(bundle)] == [
        "static_wi8_ai8",
        "static_wi8_ai8-dw3",
    ]


def test_a_single_process_gets_no_interval() -> None:
    of = artifact("tflite", "int8")
    bundle = manifest([of])
    probes = [probe(of, ms=4.0, processes=1)]
    selection = select(bundle, probes, BUDGET)
    assert [row.spread for row in view.candidate_rows(selection, bundle, probes)] == ["?"]
    assert [row.interval for row in view.candidate_rows(selection, bundle, probes)] == [
        "interval unknown"
    ]
    assert "±" not in shown(terminal.selection_table(selection, bundle, probes))
