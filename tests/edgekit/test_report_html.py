"""The page: complete, on its own, harmless with hostile strings; its charts hold the figures."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edgekit import codec, results
from edgekit.report import figures
from edgekit.report.html import render_html, write_html
from edgekit.results import RunDir, RunRecord
from edgekit.select import select
from edgekit.types import Budget, CandidateFailure, OpCount
from tests.fixtures.made_up import FACTS, artifact, demo, manifest, probe

BUDGET = Budget(max_drop=0.1)


class Page(HTMLParser):
    """Elements with their attributes, and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.style = ""
        self._raw = ""
        self._words: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._raw = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._raw = ""

    def handle_data(self, data: str) -> None:
        if self._raw == "script":
            self.scripts[-1] += data
        elif self._raw:
            self.style += data
        else:
            self._words.append(data)

    def charts(self) -> dict[str, dict[str, Any]]:
        return {chart["id"]: chart for chart in json.loads(self.scripts[0])}


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    bundle, probes, failures = demo()
    root = tmp_path_factory.mktemp("runs")
    run = RunDir.create(root, bundle.model.name, "made-up-board", codec.to_json(bundle))
    for one in probes:
        run.append_probe(one)
    run.write_failures(failures)
    results.reselect(run.path, BUDGET)
    return results.load(run.path)


@pytest.fixture(scope="module")
def page(record: RunRecord) -> Page:
    return Page(render_html(record))


def test_the_verdict_comes_first_and_everything_is_there(record: RunRecord, page: Page) -> None:
    assert record.selection is not None
    verdict = "executorch int8 with 2 threads: 26.3 ms at p50, 1.65× as fast as the fastest float"
    assert verdict in page.text
    assert page.text.index(verdict) < page.text.index("Accuracy against latency")
    assert record.selection.rule in page.text
    for candidate in record.selection.candidates:
        assert candidate.reason in page.text
    for words in (
        "Made-up board rev 1.5",
        "Fatal Python error: Segmentation fault",
        "Illegal instruction (core dumped)",
        "torchscript (legacy): deprecated",
        "52 to 58 °C",
        "5 processes of 1 s each",
        "3900 in 65 processes",
        "executorch 1.5.1, torch 2.14.1, torchao 0.18.0",
        record.manifest.golden.set_id[:12],
        "36 samples, set",
    ):
        assert words in page.text


def test_it_needs_no_network(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "base", "form")
        assert not {"src", "href", "srcset", "action", "data"} & set(attributes), (tag, attributes)
    assert "url(" not in page.style and "@import" not in page.style and "{" in page.style


def test_only_the_two_scripts_of_the_page_may_run(page: Page) -> None:
    policy = next(
        a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None and policy.startswith("default-src 'none'; script-src ")
    assert "unsafe-eval" not in policy
    script_src = policy.split("script-src")[1].split(";")[0]
    assert "unsafe-inline" not in script_src
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'"
        for s in page.scripts[1:]
    ]
    assert script_src.split() == hashes and len(hashes) == 2
    types = [a.get("type") for t, a in page.elements if t == "script"]
    assert types == ["application/json", None, None]


def test_every_chart_has_its_place_its_words_and_its_axes(page: Page) -> None:
    places = {a["id"]: a for _, a in page.elements if str(a.get("id", "")).startswith("chart-")}
    charts = page.charts()
    assert (
        set(places)
        == set(charts)
        == {f"chart-{n}" for n in ("drop", "sqnr", "distribution", "steadiness")}
    )
    for name, chart in charts.items():
        assert places[name]["role"] == "img" and len(places[name]["aria-label"] or "") > 40
        assert re.search(r"\((ms|%)\)", chart["layout"]["xaxis"]["title"]["text"])
    assert "(dB)" in charts["chart-sqnr"]["layout"]["yaxis"]["title"]["text"]
    assert [t for t, _ in page.elements].count("figcaption") == 4


def test_the_scatter_holds_every_timed_candidate_the_budget_and_the_chosen(page: Page) -> None:
    chart = page.charts()["chart-drop"]
    marks = [t for t in chart["data"] if t["x"][0] is not None]
    assert len(marks) == 13
    assert {t["marker"]["symbol"] for t in marks} == {
        "circle", "circle-open", "square", "square-open"
    }  # fmt: skip
    assert chart["layout"]["xaxis"]["type"] == "log"
    assert any(s["type"] == "line" and s["y0"] == 0.1 for s in chart["layout"]["shapes"])
    texts = [a["text"] for a in chart["layout"]["annotations"]]
    assert texts[0] == "<b>chosen</b>" and texts[1].startswith("budget 0.1")
    best = next(t for t in marks if t["hovertemplate"].startswith("<b>executorch int8, 2 thr"))
    assert best["x"][0] == pytest.approx(26.27, abs=0.05)
    assert best["error_x"]["array"][0] > 0 and best["error_x"]["arrayminus"][0] > 0
    assert 10 ** chart["layout"]["annotations"][0]["x"] == pytest.approx(best["x"][0])


def test_the_distributions_come_from_the_raw_samples() -> None:
    bundle = manifest([artifact("tflite", "int8")])
    raw = replace(
        probe(bundle.artifacts[0], ms=1),
        latency_ns=(tuple(range(1_000_000, 1_100_000, 1_000)), tuple([2_000_000] * 100)),
    )
    found = figures.points(select(bundle, [raw], BUDGET), bundle, [raw])
    box, tail = figures.distribution_chart(found)["data"]
    assert box["q1"][0] == pytest.approx(1.05, abs=0.01) and box["q3"] == [2.0]
    assert tail["x"] == [2.0, 2.0]
    diamonds = figures.steadiness_chart(found)["data"][1]["x"]
    assert len(diamonds) == 2 and diamonds[0] < 0 <= diamonds[1]


def test_boxes_that_are_far_from_their_slowest_samples_are_shown() -> None:
    bundle = manifest([artifact("tflite", "int8")])
    raw = replace(probe(bundle.artifacts[0], ms=1), latency_ns=(tuple([10**6] * 99 + [10**7]),))
    found = figures.points(select(bundle, [raw], BUDGET), bundle, [raw])
    chart = figures.distribution_chart(found)
    low, high = (10**end for end in chart["layout"]["xaxis"]["range"])
    box, tail = chart["data"]
    assert low < box["lowerfence"][0] and tail["x"][-1] < high


def test_few_alike_latencies_get_a_linear_axis_from_zero() -> None:
    bundle = manifest([artifact("tflite", "int8"), artifact("onnx", "int8")])
    probes = [probe(bundle.artifacts[0], ms=4), probe(bundle.artifacts[1], ms=6)]
    found = figures.points(select(bundle, probes, BUDGET), bundle, probes)
    axis = figures.drop_chart(found, select(bundle, probes, BUDGET))["layout"]["xaxis"]
    assert axis["type"] == "linear" and axis["rangemode"] == "tozero"


def test_hostile_strings_stay_text(record: RunRecord) -> None:
    nasty = (
        "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'%{x}{{ 7*7 }}"
        "<a href='javascript:1'>"
    )
    bad = replace(
        artifact("tflite", "int8", outside=(OpCount(nasty, 1),)),
        id=nasty,
        runtime=nasty,
        tool_versions={nasty: nasty},
    )
    bundle = manifest([bad])
    bundle = replace(bundle, model=replace(bundle.model, name=nasty, source=nasty))
    facts = replace(FACTS, model=nasty, os=nasty, governor=nasty, cpu_features=(nasty,))
    result = replace(
        probe(bad, ms=4, facts=facts), target=nasty, runtime_version=nasty, started_utc=nasty
    )
    failure = CandidateFailure(nasty, nasty, "export", nasty, nasty, nasty, (nasty,))
    selection = select(bundle, [result], BUDGET, "p50", [failure])
    hostile = RunRecord(record.path, bundle, (result,), (failure,), selection, (nasty,))
    page = Page(render_html(hostile))
    assert len(page.scripts) == 3
    tags = {t for t, _ in page.elements}
    assert not tags & {"img", "a"}
    assert not any(name.startswith("on") for _, a in page.elements for name in a)
    assert nasty in page.text
    for chart in page.charts().values():
        drawn = json.dumps(chart)
        assert "<a href" not in drawn and "<script" not in drawn
        assert not any("%{x}{{" in trace.get("hovertemplate", "") for trace in chart["data"])


def test_a_run_without_selection_and_a_bundle_without_runs_have_a_page_too(
    record: RunRecord, tmp_path: Path
) -> None:
    bare = RunRecord(tmp_path / "b.tar", record.manifest, (), record.failures, None, ("x is cut",))
    page = Page(render_html(bare))
    assert "7 artifacts, none selected yet" in page.text and "x is cut" in page.text
    assert page.charts() == {} and "What quantization made" in page.text
    failed_only = replace(record, probes=tuple(p for p in record.probes if p.status == "failed"))
    selection = select(record.manifest, failed_only.probes, BUDGET)
    page = Page(render_html(replace(failed_only, selection=selection)))
    assert "No candidate of" in page.text and page.charts() == {}


def test_emulated_is_said(record: RunRecord) -> None:
    facts = replace(FACTS, emulated=True)
    bundle = manifest([artifact("tflite", "int8")])
    probes = (probe(bundle.artifacts[0], ms=4, facts=facts),)
    selection = select(bundle, probes, BUDGET)
    text = Page(render_html(RunRecord(record.path, bundle, probes, (), selection))).text
    assert "Run on made-up-board: EMULATED" in text
    assert "(emulated)" in text and "no latency here is the device's" in text
    found = figures.points(selection, bundle, probes)
    for figure in (figures.sqnr_chart(found, selection), figures.distribution_chart(found)):
        assert figure["layout"]["xaxis"]["title"]["text"].startswith("emulated latency")


def test_the_chosen_is_marked_within_the_plot() -> None:
    bundle = manifest([artifact("tflite", "int8"), artifact("onnx", "int8")])
    fast, slow = (probe(one, ms=ms) for one, ms in zip(bundle.artifacts, (4, 40), strict=True))
    for probes, sides in (((fast,), [True]), ((fast, slow), [False])):
        selection = select(bundle, probes, BUDGET)
        found = figures.points(selection, bundle, probes)
        figure = figures.sqnr_chart(found, selection)
        assert [mark["ax"] < 0 for mark in figure["layout"]["annotations"]] == sides


def test_it_is_written_into_the_run(record: RunRecord, tmp_path: Path) -> None:
    assert write_html(record) == record.path / "report.html"
    other = tmp_path / "page.html"
    assert write_html(record, other) == other
    assert other.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert other.stat().st_size < 8_000_000
