"""Every exporter makes files that run under the runner contract and compute the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit import quality
from edgekit.errors import MissingExtra
from edgekit.quantize.inspect import inspect_file
from tests.quantize.cases import RUNTIMES, Case, case
from tests.quantize.nets import Residual, TwoOutputs, build


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
        artifact = given.export(runtime, "fp32", tmp_path / str(number))
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
        artifact = residual.export(runtime, "static_wi8_ai8", tmp_path / runtime)
        (results[runtime],) = residual.run(artifact, runtime, tmp_path)
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
