"""Tensors in place, with the real runtimes: what they read is the network, and a fault is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekit import quality, registry
from edgekit.errors import ExportFailed
from edgekit.quantize.base import ExportRequest, export
from edgekit.quantize.debug import in_place, open_reader
from edgekit.quantize.layer_errors import InPlace
from edgekit.quantize.ranges import Range, load_ranges, save_ranges
from edgekit.quantize.recipes import RECIPES
from edgekit.quantize.simulate import rounded_nodes
from tests.quantize.cases import RUNTIMES, Case, case
from tests.quantize.nets import Residual, TwoOutputs, build

SAMPLES = 6
#: The runtimes whose own files show their tensors; of the others the network is built again.
FILES = ("onnx", "tflite")


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case(build(Residual), tmp_path_factory.mktemp("residual"), ["x"])


@pytest.fixture(scope="module")
def two_outputs(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case(build(TwoOutputs), tmp_path_factory.mktemp("two"), ["x", "y"])


def request(
    given: Case,
    runtime: str,
    folder: Path,
    *,
    recipe: str = "static_wi8_ai8",
    ranges: Mapping[str, Range] | None = None,
) -> ExportRequest:
    """What an artifact is made by. The artifact too, where it is the file itself that is read."""
    ranges_file = folder / "ranges.json"
    save_ranges(ranges_file, ranges or load_ranges(given.folder / "ranges.json"))
    static = RECIPES[recipe].scheme == "static"
    made = ExportRequest(
        runtime=runtime,
        recipe=RECIPES[recipe],
        program=given.folder / "program.pt2",
        inputs=given.input_specs,
        out=folder / f"model{registry.RUNTIMES[runtime].extension}",
        ranges=ranges_file if static else None,
        calibration=given.calibration.path if static else None,
    )
    if runtime in FILES:
        export(made)
    return made


def measure(
    given: Case, made: ExportRequest, outputs: Sequence[np.ndarray] | None = None
) -> InPlace:
    wanted = rounded_nodes(given.gm)
    samples = [tuple(stack[i] for stack in given.inputs) for i in range(SAMPLES)]
    expected = [tuple(stack[i] for stack in outputs) for i in range(SAMPLES)] if outputs else []
    return in_place(given.gm, open_reader(made, wanted), samples, wanted, expected)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_tensor_is_read_and_is_the_networks_own(
    residual: Case, runtime: str, tmp_path: Path
) -> None:
    made = request(residual, runtime, tmp_path)
    if runtime not in FILES:
        export(made)
    (given,) = residual.run(made.out, runtime, residual.folder)
    found = measure(residual, made, [given])
    missing = rounded_nodes(residual.gm) - set(found.measured)
    # Made of several ONNX operators, of which none has the node's name.
    assert missing <= ({"adaptive_avg_pool2d"} if runtime == "onnx" else set())
    assert len(found.notes) == len(missing), "each runs the network of the file"
    (output,) = (node for node in residual.gm.graph.nodes if node.op == "output")
    (last,) = (node.name for node in output.all_input_nodes)
    assert found.measured[last].sqnr_db == pytest.approx(found.output_sqnr_db[0], abs=0.1)
    really = quality.sqnr_db(residual.outputs[0][:SAMPLES], given[:SAMPLES])
    assert found.output_sqnr_db[0] == pytest.approx(really, abs=1.5)
    # The input is padded first, which some runtimes do before they round it.
    inner = [one for name, one in found.measured.items() if name != "x"]
    assert all(20 < one.sqnr_db < 70 for one in inner), found.measured


@pytest.mark.parametrize("runtime", FILES)
def test_several_inputs_and_outputs_keep_their_order(
    two_outputs: Case, runtime: str, tmp_path: Path
) -> None:
    found = measure(two_outputs, request(two_outputs, runtime, tmp_path))
    assert len(found.output_sqnr_db) == 2 and min(found.output_sqnr_db) > 20
    assert all(one.sqnr_db > 20 for one in found.measured.values()), found.measured


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_range_that_cuts_values_off_is_found_where_it_is(
    residual: Case, runtime: str, tmp_path: Path
) -> None:
    """A quarter of the range at one tensor: SQNR falls there and not before."""
    ranges = load_ranges(residual.folder / "ranges.json")
    order = [n.name for n in residual.gm.graph.nodes if n.name in rounded_nodes(residual.gm)]
    fault = next(name for name in order if name.startswith("conv2d"))
    cut = {
        kind: tuple(end / 4 for end in ranges[fault].of(kind))
        for kind in ("minmax", "percentile", "histogram", "mse")
    }
    ranges[fault] = replace(ranges[fault], **cut)  # type: ignore[arg-type]
    found = measure(residual, request(residual, runtime, tmp_path, ranges=ranges)).measured
    before = [found[name].sqnr_db for name in order[: order.index(fault)] if name in found]
    assert found[fault].sqnr_db < min(before) - 10, found
    assert found[fault].sqnr_db < 15


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_dynamic_networks_are_read_too(residual: Case, runtime: str, tmp_path: Path) -> None:
    found = measure(residual, request(residual, runtime, tmp_path, recipe="dynamic_wi8_afp32"))
    assert found.output_sqnr_db[0] > 25
    assert len(found.measured) >= 4
    convolutions = [one for name, one in found.measured.items() if name.startswith("conv2d")]
    assert all(one.sqnr_db > 25 for one in convolutions)


def test_a_rebuilt_network_that_is_another_one_is_noticed(residual: Case, tmp_path: Path) -> None:
    made = request(residual, "torchscript", tmp_path)
    wanted = rounded_nodes(residual.gm)
    sample = (residual.inputs[0][0],)
    shifted = [(residual.outputs[0][0] + np.float32(1.0),)]
    found = in_place(residual.gm, open_reader(made, wanted), [sample], wanted, shifted)
    assert any("agree with those of the file" in note for note in found.notes)


def test_a_runtime_without_a_reader_says_so(
    residual: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = replace(registry.RUNTIMES["onnx"], debugger="")
    monkeypatch.setattr(registry, "runtimes", lambda: {"onnx": entry})
    made = ExportRequest("onnx", RECIPES["static_wi8_ai8"], tmp_path / "p", (), tmp_path / "m.onnx")
    with pytest.raises(ExportFailed, match="no way to see"):
        open_reader(made, ())
