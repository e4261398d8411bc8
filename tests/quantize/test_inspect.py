from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekit import codec, isolate
from edgekit.errors import UsageError
from edgekit.quantize.inspect import inspect_file, inspect_worker
from edgekit.quantize.macs import MacOp, share_text, summarise
from edgekit.types import Inspection
from tests.quantize import inspect_nets as nets

_INSPECTORS = ("inspect", "inspect_executorch", "inspect_onnx", "inspect_tflite")


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "net.pt"
    torch.jit.trace(nets.net(), nets.net_input()).save(str(path))
    return path


def test_content_decides_and_a_wrong_name_is_noted(program: Path, tmp_path: Path) -> None:
    assert inspect_file(program).macs == nets.NET_MACS
    renamed = tmp_path / "net.tflite"
    renamed.write_bytes(program.read_bytes())
    found = inspect_file(renamed)
    assert found.macs == nets.NET_MACS
    assert "torchscript" in found.notes[0]
    assert "net.tflite" in found.notes[0]


def test_files_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "notes.txt").write_text("a text file")
    np.savez(tmp_path / "data.npz", x=np.zeros(3))
    for name, reason in (
        ("missing.onnx", "No such file"),
        ("", "Is a directory"),
        ("empty.onnx", "is empty"),
        ("notes.txt", "not a model file"),
        ("data.npz", "holds no program"),
    ):
        with pytest.raises(UsageError, match=reason) as caught:
            inspect_file(tmp_path / name)
        assert caught.value.remedy


@pytest.mark.parametrize("extension", [".pte", ".tflite", ".onnx", ".pt"])
def test_foreign_content_is_a_usage_error(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"model{extension}"
    path.write_bytes(np.random.default_rng(0).bytes(4096))
    with pytest.raises(UsageError, match="cannot be read as"):
        inspect_file(path)


def _job(path: Path, folder: Path) -> isolate.Job:
    return isolate.Job(
        name="inspect",
        entry="edgekit.quantize.inspect:inspect_worker",
        payload={"path": str(path)},
        log=folder / "log.txt",
        timeout_s=120,
        memory_bytes=8 << 30,
    )


def test_worker_gives_what_the_direct_call_gives(program: Path, tmp_path: Path) -> None:
    answer = isolate.run_isolated(_job(program, tmp_path))
    assert codec.from_json(Inspection, answer, where="inspection") == inspect_file(program)
    assert json.loads(json.dumps(inspect_worker({"path": str(program)}))) == answer


def test_an_error_in_the_worker_keeps_its_class(tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(b"nothing that a runtime reads")
    with pytest.raises(UsageError, match="cannot be read as an ExecuTorch program"):
        isolate.run_isolated(_job(path, tmp_path))


def test_importing_inspectors_loads_no_framework() -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {_INSPECTORS}: importlib.import_module(f'edgekit.quantize.{{name}}')\n"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'ai_edge_litert', 'executorch')"
        " if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_summary_adds_up() -> None:
    found = summarise(
        [
            MacOp("a", 60, "static", delegated=True),
            MacOp("b", 25, "dynamic", delegated=True),
            MacOp("c", 10, "weight_only", delegated=False),
            MacOp("d", 5, "unfused", delegated=False),
        ],
        outside={"x": 1, "y": 3, "z": 0},
        transposes=2,
        quantize_ops=4,
        weight_bytes=7,
    )
    assert (found.int8_mac_share, found.dynamic_mac_share, found.delegated_share) == (
        0.85,
        0.25,
        0.85,
    )
    assert [(op.op, op.count) for op in found.outside_ops] == [("y", 3), ("x", 1)]
    assert [note.split(" %")[0] for note in found.notes] == ["25.0", "10.0", "5.0"]


def test_nothing_to_count() -> None:
    found = summarise([], outside={}, transposes=0, quantize_ops=0, weight_bytes=0)
    assert (found.macs, found.int8_mac_share, found.delegated_share) == (0, None, None)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0.0 %"), (1e-6, "less than 0.1 %"), (0.99999, "more than 99.9 %"), (1.0, "100.0 %")],
)
def test_share_is_never_rounded_to_nothing_or_all(share: float, text: str) -> None:
    assert share_text(share) == text
