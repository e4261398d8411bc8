"""``edgekit debug`` on a tiny real project: after `quantize`, with its options, and without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edgekit
from tests.edgekit.cli.conftest import Done, execute
from tests.fixtures.tiny_project import make_project

RUNTIMES = ("onnx", "torchscript")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose bundle was made."""
    folder = make_project(tmp_path_factory.mktemp("debug"), RUNTIMES)
    done = execute(folder, "quantize", "--json")
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def debugged(project: Path) -> Done:
    return execute(project, "debug", "--json")


def test_every_int8_artifact_has_its_layers(project: Path, debugged: Done) -> None:
    assert debugged.code == 0, debugged.err
    document = debugged.document
    assert document["failures"] == []
    found = {one["artifact"]: one for one in document["artifacts"]}
    assert {one["runtime"] for one in found.values()} == set(RUNTIMES)
    for one in found.values():
        operators = [layer["node"]["op"] for layer in one["layers"]]
        assert operators[0] == "input" and "conv2d+relu" in operators and "linear" in operators
        assert one["n"] == 8 and len(one["output_sqnr_db"]) == 1
        assert one["output_sqnr_db"][0] == pytest.approx(one["layers"][-1]["sqnr_db"], abs=0.2)
        assert all(layer["advice"] and layer["node"]["facts"] for layer in one["layers"])
        convolution = one["layers"][operators.index("conv2d+relu")]["node"]
        assert convolution["module"] == "0"
    assert Path(document["report"]) == project / "debug.html"


def test_the_page_is_written(project: Path, debugged: Done) -> None:
    text = (project / "debug.html").read_text(encoding="utf-8")
    assert "The layers that add most" in text and "tiny-onnx-static_wi8_ai8" in text


def test_for_people_it_is_a_table_of_100_columns(project: Path, debugged: Done) -> None:
    done = execute(project, "debug", "--runtimes", "onnx", "--samples", "3", "-o", "other.html")
    assert done.code == 0, done.err
    assert max(map(len, done.out.splitlines())) <= 100
    assert "tiny-onnx-static_wi8_ai8: output" in done.out and "over 3 samples" in done.out
    assert "torchscript" not in done.out
    assert (project / "other.html").exists()


def test_a_bundle_can_be_named_and_python_gives_the_same(project: Path, debugged: Done) -> None:
    done = execute(project, "debug", "bundle", "--runtimes", "onnx", "--json")
    assert done.code == 0, done.err
    named = done.document["artifacts"][0]["layers"]
    wanted = next(a for a in debugged.document["artifacts"] if a["runtime"] == "onnx")["layers"]
    assert [layer["sqnr_db"] for layer in named] == [layer["sqnr_db"] for layer in wanted]
    outcome = edgekit.Project.load(project).debug(runtimes=["onnx"])
    (errors,) = outcome.artifacts
    assert [layer.sqnr_db for layer in errors.layers] == [layer["sqnr_db"] for layer in wanted]


def test_without_int8_for_a_runtime_it_says_what_there_is(project: Path, debugged: Done) -> None:
    done = execute(project, "debug", "--runtimes", "tflite")
    assert done.code == 2 and "no INT8 artifact for tflite" in done.err
    assert "onnx, torchscript" in done.err


def test_what_was_changed_since_is_to_be_quantized_first(project: Path, debugged: Done) -> None:
    model = project / "model.py"
    before = model.read_text()
    try:
        model.write_text(before + "\n# another file\n")
        done = execute(project, "debug", "--json")
    finally:
        model.write_text(before)
    assert done.code != 0
    assert "edgekit quantize" in json.loads(done.out)["error"]["remedy"]


def test_without_a_bundle_it_says_so(tmp_path: Path) -> None:
    folder = make_project(tmp_path, ["onnx"])
    done = execute(folder, "debug")
    assert done.code == 2 and "Traceback" not in done.err
