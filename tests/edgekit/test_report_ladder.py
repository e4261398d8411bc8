"""The ladder's table: what a person reads there after `edgekit quantize`."""

from __future__ import annotations

import io

from rich.console import Console

from edgekit.report.ladder import ladder_table, ladders
from edgekit.types import Recipe, RecipeLog, RungResult

RUNGS = (
    RungResult("calibration", True, 16.5, 0.14, 4.0, note="fused patterns"),
    RungResult("bias_correction", True, 21.4, 0.08, 6.0, note="biases of 53 layers"),
    RungResult("ranges", False, 21.1, 0.08, 9.0, note="mse ranges"),
    RungResult("float_layers", True, 24.0, 0.01, 30.0, added_ns=410_000, note="float: conv2d"),
)
RECIPE = Recipe("static_wi8_ai8", "int8", scheme="static")


def log() -> RecipeLog:
    ids = ("net-onnx-static_wi8_ai8", "net-tflite-static_wi8_ai8")
    return RecipeLog(1, dict.fromkeys(ids, RECIPE), ladders=dict.fromkeys(ids, RUNGS))


def test_runtimes_that_share_a_ladder_share_a_table() -> None:
    (view,) = ladders(log())
    assert view.artifacts == ("net-onnx-static_wi8_ai8", "net-tflite-static_wi8_ai8")
    assert view.gains_db[0] is None
    assert [round(gain, 1) for gain in view.gains_db[1:] if gain is not None] == [4.9, -0.3, 2.6]


def test_the_table_says_what_each_rung_bought_and_cost() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(ladder_table(ladders(log())[0]))
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= 100
    lines = {line.split()[0]: line for line in text.splitlines() if line.split()}
    assert "+4.9" in lines["bias_correction"] and "kept" in lines["bias_correction"]
    assert "no" in lines["ranges"].split() and "-0.3" in lines["ranges"]
    assert "0.41 ms" in lines["float_layers"]


def test_control_characters_of_a_foreign_bundle_do_no_harm() -> None:
    bad = RungResult("calibration", True, 1.0, 0.0, 0.0, note="\x1b[2Jgone")
    hostile = RecipeLog(1, {"a": RECIPE}, ladders={"a": (bad,)})
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(ladder_table(ladders(hostile)[0]))
    assert "\x1b" not in console.export_text()
