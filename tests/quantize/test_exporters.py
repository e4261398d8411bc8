"""Every exporter makes files that run under the runner contract and compute the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit import quality, registry
from edgekit.data import SampleSet
from edgekit.errors import MissingExtra
from edgekit.quantize.base import ExportRequest, export
from edgekit.quantize.calibrate import load_ranges
from edgekit.quantize.engine import Prepared, prepare_model, repair_program
from edgekit.quantize.inspect import inspect_file
from edgekit.quantize.prepare import flatten
from edgekit.quantize.recipes import RECIPES
from edgekit.targets.measure import HostMeasurer
from tests.quantize.nets import Residual, TwoOutputs, build, image_inputs, stored

RUNTIMES = sorted(registry.RUNTIMES)
TEST_SAMPLES = 24


@dataclass(frozen=True)
class Case:
    """A model that was prepared and repaired, with test inputs and its float outputs."""

    folder: Path
    prepared: Prepared
    calibration: SampleSet
    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]

    def export(self, runtime: str, recipe_name: str, out: Path) -> Path:
        recipe = RECIPES[recipe_name]
        int8 = recipe.precision == "int8"
        request = ExportRequest(
            runtime=runtime,
            recipe=recipe,
            program=(self.folder / "repaired" if int8 else self.folder) / "program.pt2",
            inputs=self.prepared.inputs,
            out=out / f"model{registry.RUNTIMES[runtime].extension}",
            ranges=self.folder / "repaired" / "ranges.json" if int8 else None,
            calibration=self.calibration.path if int8 else None,
        )
        versions = export(request)
        assert versions["torch"] == torch.__version__.partition("+")[0]
        assert [path for path in out.iterdir() if path != request.out] == [], "nothing left over"
        return request.out

    def run(self, artifact: Path, runtime: str, workdir: Path) -> list[np.ndarray]:
        return HostMeasurer().outputs(
            artifact, runtime, self.inputs, self.prepared.outputs, workdir=workdir
        )


def case(
    module: torch.nn.Module, folder: Path, names: Sequence[str], *, first: float = 1.0
) -> Case:
    """``first`` scales the first calibration sample, which must not decide alone."""
    calibration = [image_inputs(32, seed=10 + i) for i in range(len(names))]
    for stack in calibration:
        stack[0] *= first
    test = [image_inputs(TEST_SAMPLES, seed=20 + i) for i in range(len(names))]
    example = tuple(torch.from_numpy(stack[0]) for stack in calibration)
    prepared = prepare_model(module, example, names, folder)
    source = stored(folder, calibration, names)
    (folder / "repaired").mkdir()
    recipe = RECIPES["static_wi8_ai8"]
    repair_program(folder / "program.pt2", source, recipe, folder / "repaired")
    with torch.inference_mode():
        outputs = [
            [value.numpy() for value in flatten(module(*map(torch.from_numpy, sample)))]
            for sample in zip(*test, strict=True)
        ]
    stacks = tuple(np.stack(values) for values in zip(*outputs, strict=True))
    return Case(folder, prepared, source, tuple(test), stacks)


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case(build(Residual), tmp_path_factory.mktemp("residual"), ["x"])


@pytest.fixture(scope="module")
def two_outputs(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return case(build(TwoOutputs), tmp_path_factory.mktemp("two"), ["x", "y"])


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_float_twins_agree_with_the_eager_model(
    residual: Case, two_outputs: Case, runtime: str, tmp_path: Path
) -> None:
    for number, given in enumerate((residual, two_outputs)):
        out = tmp_path / str(number)
        out.mkdir()
        artifact = given.export(runtime, "fp32", out)
        results = given.run(artifact, runtime, tmp_path)
        assert len(results) == len(given.outputs)
        for wanted, got in zip(given.outputs, results, strict=True):
            assert got.dtype == np.float32 and got.shape == wanted.shape
            assert quality.sqnr_db(wanted, got) > 90


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_int8_keeps_the_model_and_is_int8(residual: Case, runtime: str, tmp_path: Path) -> None:
    artifact = residual.export(runtime, "static_wi8_ai8", tmp_path)
    (result,) = residual.run(artifact, runtime, residual.folder)
    assert quality.sqnr_db(residual.outputs[0], result) > 20
    found = inspect_file(artifact)
    assert found.int8_mac_share is not None and found.int8_mac_share > 0.95


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_each_output_keeps_its_own_scale(two_outputs: Case, runtime: str, tmp_path: Path) -> None:
    artifact = two_outputs.export(runtime, "static_wi8_ai8", tmp_path)
    large, small = two_outputs.run(artifact, runtime, two_outputs.folder)
    assert np.abs(two_outputs.outputs[0]).max() > 20 * np.abs(two_outputs.outputs[1]).max()
    assert quality.sqnr_db(two_outputs.outputs[0], large) > 20
    assert quality.sqnr_db(two_outputs.outputs[1], small) > 20


def test_runtimes_use_the_same_ranges_and_so_agree(residual: Case, tmp_path: Path) -> None:
    results = {}
    for runtime in RUNTIMES:
        out = tmp_path / runtime
        out.mkdir()
        artifact = residual.export(runtime, "static_wi8_ai8", out)
        (results[runtime],) = residual.run(artifact, runtime, tmp_path)
    assert load_ranges(residual.folder / "repaired" / "ranges.json")
    error = {name: quality.sqnr_db(residual.outputs[0], got) for name, got in results.items()}
    between = {
        name: quality.sqnr_db(results["executorch"], got)
        for name, got in results.items()
        if name != "executorch"
    }
    assert min(error.values()) > 35, error
    assert min(between.values()) > 35, between


def test_a_missing_framework_names_its_extra(
    residual: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "edgekit.quantize.to_onnx", None)
    with pytest.raises(MissingExtra) as caught:
        residual.export("onnx", "fp32", tmp_path)
    assert caught.value.extra == "onnx"
