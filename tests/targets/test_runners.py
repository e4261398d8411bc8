"""All runners, held to one contract."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.targets.measure import HostMeasurer
from edgekit.targets.runner import RunnerArguments, parse_document, parse_report, spec
from edgekit.targets.runtimes import AGENT_DIR

RUNTIMES = ("executorch", "tflite", "onnx", "torchscript")
Arrays = tuple[np.ndarray[Any, Any], ...]


@pytest.fixture(scope="session")
def measurer(cache: Path) -> HostMeasurer:
    return HostMeasurer(cache=cache, timeout_s=120)


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _inputs(folder: Path, samples: Arrays) -> tuple[tuple[str, ...], tuple[str, ...]]:
    paths = []
    for index, array in enumerate(samples):
        path = folder / f"in-{index}.raw"
        array.tofile(path)
        paths.append(str(path))
    return tuple(paths), tuple(spec(a.dtype.name, a.shape[1:]) for a in samples)


def _run(
    measurer: HostMeasurer, runtime: str, argv: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    command = [*measurer.command(runtime), *argv]
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=120, check=False
    )


def test_replays_every_sample_in_order_and_reports(
    measurer: HostMeasurer,
    runtime: str,
    models: Mapping[str, Path],
    samples: Arrays,
    float_outputs: list[np.ndarray[Any, Any]],
    tmp_path: Path,
) -> None:
    inputs, specs = _inputs(tmp_path, samples)
    outputs = tuple(str(tmp_path / f"out-{k}.raw") for k in range(len(float_outputs)))
    arguments = RunnerArguments(
        str(models[runtime]), 2, 5, inputs, specs, outputs, 0.2, 0.05, min_runs=3, max_runs=500
    )
    done = _run(measurer, runtime, arguments.argv())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and done.stdout.endswith("\n")
    report = parse_report(done.stdout)
    assert (report.runner, report.threads, report.samples) == (runtime, 2, 5)
    assert report.runtime_version[0].isdigit()
    assert 3 <= len(report.latency_ns) <= 500 and min(report.latency_ns) > 0
    assert report.load_ns > 0 and report.first_ns > 0 and report.warmup_runs > 0
    assert 2**20 < report.peak_rss_bytes < 4 * 2**30
    assert [(t.dtype, t.shape) for t in report.inputs] == [
        ("float32", (1, 3, 8, 8)),
        ("float32", (1, 2)),
    ]
    assert [(t.dtype, t.shape) for t in report.outputs] == [("float32", (1, 4))] * 12
    for path, expected in zip(outputs, float_outputs, strict=True):
        found = np.fromfile(path, np.float32).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_zeros_and_no_timing(
    measurer: HostMeasurer, runtime: str, models: Mapping[str, Path], samples: Arrays
) -> None:
    specs = tuple(spec(a.dtype.name, a.shape[1:]) for a in samples)
    arguments = RunnerArguments(str(models[runtime]), 1, 0, specs=specs)
    done = _run(measurer, runtime, arguments.argv())
    assert done.returncode == 0, done.stderr
    report = parse_report(done.stdout)
    assert report.latency_ns == () and report.samples == 0 and report.first_ns > 0


def test_runs_stop_at_the_maximum(
    measurer: HostMeasurer, runtime: str, models: Mapping[str, Path], samples: Arrays
) -> None:
    specs = tuple(spec(a.dtype.name, a.shape[1:]) for a in samples)
    arguments = RunnerArguments(
        str(models[runtime]), 1, 0, specs=specs, budget_s=60.0, min_runs=2, max_runs=7
    )
    done = _run(measurer, runtime, arguments.argv())
    assert len(parse_report(done.stdout).latency_ns) == 7


def test_selftest_executes_the_runtime(measurer: HostMeasurer, runtime: str) -> None:
    done = _run(measurer, runtime, ["--selftest"])
    assert done.returncode == 0, done.stderr
    document = parse_document(done.stdout)
    assert document["selftest"] == "ok" and document["runner"] == runtime


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"--threads": "0"}, 64),
        ({"--threads": "many"}, 64),
        ({"--min-runs": "5", "--max-runs": "4"}, 64),
        ({"--max-runs": "1000000"}, 64),
        ({"--warmup-s": "-1"}, 64),
        ({"--nonsense": "1"}, 64),
        ({"--model": None}, 64),
        ({"--model": "/nowhere/model"}, 65),
        ({"--model": "GARBAGE"}, 65),
        ({"--input": "/nowhere/input"}, 66),
        ({"--input": "SHORT"}, 66),
        ({"--samples": "6"}, 66),
        ({"--spec": "float32:1x3x9x9"}, 66),
    ],
)
def test_exit_codes(
    measurer: HostMeasurer,
    runtime: str,
    change: dict[str, str | None],
    code: int,
    models: Mapping[str, Path],
    samples: Arrays,
    tmp_path: Path,
) -> None:
    (tmp_path / "garbage").write_bytes(os.urandom(3000))
    (tmp_path / "short").write_bytes(b"\0" * 10)
    places = {"GARBAGE": str(tmp_path / "garbage"), "SHORT": str(tmp_path / "short")}
    inputs, specs = _inputs(tmp_path, samples)
    argv = RunnerArguments(str(models[runtime]), 1, 5, inputs, specs).argv()
    for name, value in change.items():
        if name not in argv:
            argv += [name, str(value)]
        elif value is None:
            at = argv.index(name)
            del argv[at : at + 2]
        else:
            argv[argv.index(name) + 1] = places.get(value, value)
    done = _run(measurer, runtime, argv)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert done.stdout == ""
    assert done.stderr.strip(), "a failure says why on stderr"


def test_torchscript_needs_specs_and_knows_its_engines(
    measurer: HostMeasurer, models: Mapping[str, Path], samples: Arrays
) -> None:
    base = ["--model", str(models["torchscript"]), "--samples", "0"]
    assert _run(measurer, "torchscript", base).returncode == 64
    for engine in ("qnnpack", "x86"):
        argv = [*base, "--engine", engine]
        for array in samples:
            argv += ["--spec", spec(array.dtype.name, array.shape[1:])]
        done = _run(measurer, "torchscript", argv)
        assert done.returncode == 0, done.stderr
        assert "deprecat" not in done.stderr.lower()


@pytest.mark.parametrize("path", sorted(AGENT_DIR.glob("*.py")), ids=lambda p: p.name)
def test_device_code_is_python_3_9_and_imports_nothing_of_edgekit(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    checked_only = {
        node
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert node in checked_only or not any(n.split(".")[0] == "edgekit" for n in names)
        assert not isinstance(node, ast.Match)


def test_report_is_plain_json_with_the_documented_keys(
    measurer: HostMeasurer, models: Mapping[str, Path], samples: Arrays
) -> None:
    specs = tuple(spec(a.dtype.name, a.shape[1:]) for a in samples)
    keys = set()
    for runtime in RUNTIMES:
        argv = RunnerArguments(str(models[runtime]), 1, 0, specs=specs).argv()
        keys.add(tuple(json.loads(_run(measurer, runtime, argv).stdout)))
    assert len(keys) == 1, "all runners write the same keys in the same order"


def test_onnx_products_are_exact_on_every_processor(measurer: HostMeasurer, tmp_path: Path) -> None:
    """x86 without VNNI adds two products in 16 bits by default: 255 * 127 twice does not fit."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = np.full((64, 4), 127, np.int8)
    graph = helper.make_graph(
        [
            helper.make_node("MatMulInteger", ["x", "w"], ["sum"]),
            helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.FLOAT),
        ],
        "saturating",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = tmp_path / "saturating.onnx"
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), model)
    inputs, specs = _inputs(tmp_path, (np.full((1, 1, 64), 255, np.uint8),))
    arguments = RunnerArguments(str(model), 1, 1, inputs, specs, (str(tmp_path / "y.raw"),))
    done = _run(measurer, "onnx", arguments.argv())
    assert done.returncode == 0, done.stderr
    assert np.fromfile(tmp_path / "y.raw", np.float32).tolist() == [64.0 * 255 * 127] * 4


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "asked_for"),
    [
        ("x86_64", "flags\t\t: fpu sse avx2 avx512f avx512_vnni rdpid", False),
        ("x86_64", "flags\t\t: fpu sse avx2 avx_vnni", False),
        ("x86_64", "flags\t\t: fpu sse avx2 avx512f", True),
        ("AMD64", "", True),
        ("aarch64", "Features\t: fp asimd crc32", False),
        ("arm64", "", False),
    ],
)
def test_exact_kernels_are_asked_of_onnx_runtime_only_where_others_saturate(
    machine: str, cpuinfo: str, asked_for: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take twice the time."""
    monkeypatch.syspath_prepend(str(AGENT_DIR))
    run_onnx = importlib.import_module("run_onnx")
    assert run_onnx.sums_in_16_bits(machine, cpuinfo) is asked_for
