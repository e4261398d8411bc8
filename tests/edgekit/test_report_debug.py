"""Layer errors as a terminal table of 100 columns and as a page of its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from edgekit.quantize.layer_errors import ArtifactErrors, Facts, LayerError, Node
from edgekit.quantize.recipes import RECIPES
from edgekit.report.debug_page import headline, render_debug_page, write_debug_page
from edgekit.report.debug_terminal import SHOWN, errors_view
from tests.edgekit.test_report_html import Page

HOSTILE = '<script>alert("x")</script>%{x}'


def row(i: int, own: float | None) -> LayerError:
    node = Node(
        f"conv2d_{i}",
        "conv2d+hardtanh",
        layer=True,
        module=f"features.{i}.block.0.with_a_rather_long_name",
        source=f"/home/somebody/model.py:{i}",
        facts=None if own is None else Facts(own_sqnr_db=own),
    )
    advice = "12.3% of its values are clipped, 95% of its rounding error: wider ranges (the ranges "
    return LayerError(node, 40.0 - i, 0.5, advice + 'rung, or ranges = "minmax")')


def errors(runtime: str, count: int = 14) -> ArtifactErrors:
    return ArtifactErrors(
        artifact=f"net-{runtime}-static_wi8_ai8",
        runtime=runtime,
        recipe=RECIPES["static_wi8_ai8"],
        n=8,
        method="the file's own tensors",
        output_sqnr_db=(26.04,),
        layers=tuple(row(i, None if i == 3 else 20.0 + 3 * i) for i in range(count)),
        notes=("2 of 16 tensors are not in the INT8 network",),
    )


def text(artifacts: list[ArtifactErrors]) -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"), color_system=None)  # noqa: SIM115
    console.print(errors_view(artifacts))
    return console.export_text()


def test_the_ten_worst_come_first_with_advice_in_100_columns() -> None:
    shown = text([errors("onnx"), errors("tflite")])
    assert max(map(len, shown.splitlines())) <= 100
    assert "net-onnx-static_wi8_ai8: output 26.0 dB over 8 samples" in shown
    assert "2 of 16 tensors" in shown
    first = shown.index("20.0")
    assert first < shown.index("23.0") < shown.index("26.0", first)
    assert shown.count("12.3%") == 2 * SHOWN
    whole = " ".join(shown.split())
    assert "wider ranges" in whole


def test_the_worst_are_those_that_add_most_themselves() -> None:
    given = errors("onnx")
    assert [r.node.name for r in given.worst(3)] == ["conv2d_0", "conv2d_1", "conv2d_2"]
    nothing_known = replace(given, layers=tuple(row(i, None) for i in range(4)))
    assert [r.node.name for r in nothing_known.worst(2)] == ["conv2d_3", "conv2d_2"]


def test_the_page_is_complete_and_on_its_own(tmp_path: Path) -> None:
    given = [errors("onnx"), errors("tflite")]
    path = write_debug_page("net", given, tmp_path / "debug.html")
    page = Page(path.read_text(encoding="utf-8"))
    charts = page.charts()
    assert set(charts) == {"chart-in-place", "chart-own"}
    lines = charts["chart-in-place"]["data"]
    assert [line["name"] for line in lines] == ["onnx", "tflite"]
    assert lines[0]["y"] == [40.0 - i for i in range(14)]
    # Both come from one repaired program, so their own errors are shown once.
    assert sum(len(t["x"]) for t in charts["chart-own"]["data"]) == 13
    assert headline(given) in page.text and "20.0 dB" in headline(given)
    for words in ("features.13.block.0", "wider ranges", "/home/somebody/model.py:5"):
        assert words in page.text
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "base", "form")
        assert not {"src", "href"} & set(attributes)


def test_hostile_names_stay_text() -> None:
    given = errors("onnx", 3)
    bad = replace(given.layers[0].node, module=HOSTILE, op=HOSTILE, source=HOSTILE)
    given = replace(given, layers=(replace(given.layers[0], node=bad), *given.layers[1:]))
    page = Page(render_debug_page("net", [given]))
    assert len(page.scripts) == 3 and HOSTILE in page.text
    charts = page.charts()
    assert "<script" not in json.dumps(charts)
    hovers = [text for chart in charts.values() for t in chart["data"] for text in t["text"]]
    assert hovers and not any("%{" in text for text in hovers)


def test_recipes_without_own_errors_have_a_page_too() -> None:
    given = replace(errors("onnx"), layers=tuple(row(i, None) for i in range(4)))
    page = Page(render_debug_page("net", [given]))
    assert "No layer's own error is known." in page.text
    assert page.charts()["chart-own"]["data"][0]["x"] == []


@pytest.mark.parametrize("artifacts", [[], [errors("onnx", 0)]])
def test_nothing_to_show_is_no_error(artifacts: list[ArtifactErrors]) -> None:
    assert "No layer" in Page(render_debug_page("net", artifacts)).text
    text(artifacts)
