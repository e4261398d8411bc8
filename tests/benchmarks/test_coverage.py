"""What the coverage benchmark makes of what `edgekit quantize` says, and one real architecture."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import coverage
from benchmarks.common import finish
from benchmarks.coverage import Result
from benchmarks.models import untrained
from edgekit import registry


def test_a_small_architecture_works_everywhere(tmp_path: Path) -> None:
    """The real thing: every exporter and every runner; the second run reads what was kept."""
    command = [sys.executable, "-m", "benchmarks.coverage", "--quick", "--json"]
    command += ["--work", str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    document = json.loads(ran.stdout)
    (row,) = document["rows"]
    assert row["architecture"] == "squeezenet1_1"
    assert all(row[f"{runtime} int8"] != "FAILED" for runtime in registry.RUNTIMES)
    (kept,) = tmp_path.iterdir()
    written = kept.stat().st_mtime_ns
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert json.loads(again.stdout)["rows"] == document["rows"]
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]
    assert kept.stat().st_mtime_ns == written


def document(name: str, **changes: Any) -> dict[str, Any]:
    """What `edgekit quantize --json` says where all went well."""
    ids = [
        f"{name}-{runtime}-{recipe}"
        for runtime in registry.RUNTIMES
        for recipe in ("fp32", coverage.int8_recipe(name, runtime))
    ]
    outputs = ({"sqnr_db": 120.0}, {"sqnr_db": 110.0})
    results = [
        {"artifact_id": made, "drop": 0.01, "outputs": [dict(one) for one in outputs]}
        for made in ids
    ]
    return {"evals": [{"results": results}], "failures": [], **changes}


def test_all_good() -> None:
    found = list(coverage.cells("resnet18", document("resnet18")))
    assert len(found) == 2 * len(registry.RUNTIMES)
    assert all(cell.ok and cell.sqnr_db == 110.0 for cell in found)


def test_failures_have_their_cause() -> None:
    given = document("resnet18")
    results = given["evals"][0]["results"]
    results[0]["outputs"][1]["sqnr_db"] = 89.0
    (gone,) = (r for r in results if r["artifact_id"] == "resnet18-onnx-static_wi8_ai8")
    results.remove(gone)
    given["failures"] = [
        {
            "candidate": "resnet18-onnx-static_wi8_ai8",
            "stage": "export",
            "message": "no kernel for erf",
        }
    ]
    causes = [c.cause for c in coverage.cells("resnet18", given) if not c.ok]
    assert causes == ["agrees with eager to 89.0 dB only", "export: no kernel for erf"]
    results[1]["drop"] = 0.9
    (cell,) = [c for c in coverage.cells("resnet18", given) if c.precision == "int8"][:1]
    assert cell.cause == "loses 90% of its outputs' variance", "what says nothing is no artifact"
    every = list(coverage.cells("resnet18", {"error": {"message": "took too long"}}))
    assert {cell.cause for cell in every} == {"took too long"}


def test_transformers_are_dynamic_where_that_exists() -> None:
    assert coverage.int8_recipe("resnet18", "onnx") == "static_wi8_ai8"
    assert coverage.int8_recipe("vit_b_32", "onnx") == "dynamic_wi8_afp32"
    assert "dynamic_wi8_afp32" not in coverage.recipes("resnet18")


@pytest.mark.parametrize(("failed", "code"), [(2, 0), (3, 1)])
def test_less_than_95_per_cent_is_exit_code_1(failed: int, code: int) -> None:
    good = tuple(coverage.cells("resnet18", document("resnet18")))
    bad = [replace(cell, cause="broken") for cell in good[:failed]]
    results = [Result("resnet18", 1.0, good)] * 4 + [Result("alexnet", 1.0, (*bad, *good[failed:]))]
    report = coverage.evaluate(results, {})
    assert report.rows[0][0] == "resnet18" and "FAILED" not in report.rows[0]
    assert report.rows[4][1:4] == ["FAILED", "FAILED", "FAILED" if failed == 3 else "110"]
    assert sum("broken" in note for note in report.notes) == failed
    assert finish(report, as_json=True, quick=False) == code


def test_an_architecture_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    started = time.monotonic()
    found = coverage.measure("mobilenet_v3_small", tmp_path, 0, timeout_s=2.0)
    assert {cell.cause for cell in found.cells} == {"took more than 2 s"}
    assert time.monotonic() - started < 45, "it would have taken minutes"
    assert list(tmp_path.iterdir()) == [], "another run tries it again"


def test_the_samples_are_seeded_and_of_the_models_shape() -> None:
    a, b = (coverage.noise(2, 64, 5) for _ in range(2))
    assert a.shape == (2, 1, 3, 64, 64) and a.dtype == np.float32
    assert np.array_equal(a, b) and not np.array_equal(a, coverage.noise(2, 64, 6))


def test_at_least_20_architectures_of_torchvision() -> None:
    from torchvision.models import list_models

    assert len(coverage.ARCHITECTURES) >= 20
    assert set(coverage.ARCHITECTURES) <= set(list_models())
    assert set(coverage.ARCHITECTURES) >= coverage.TRANSFORMERS


def test_no_networks_outputs_are_all_alike() -> None:
    """As torchvision makes it, the vision transformer gives zeros, which INT8 keeps to 200 dB."""
    images = torch.from_numpy(coverage.noise(2, 224, 5)[:, 0])
    with torch.inference_mode():
        one, other = untrained.network("vit_b_32")(images)
    assert float((one - other).abs().max()) > 0.1
