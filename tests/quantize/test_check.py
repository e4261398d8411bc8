"""The operator check against what the exporters really do, for every runtime."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgekit import codec, registry
from edgekit.errors import ExportFailed, MissingExtra
from edgekit.quantize import check
from edgekit.quantize.check import FATES, Operator, RuntimeCheck, Verdict
from edgekit.quantize.origins import operators
from edgekit.quantize.prepare import export_program, prepare
from tests.quantize.nets import Residual, build

IMAGE = (torch.zeros(1, 3, 32, 32),)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = x + nn.functional.gelu(self.linear(self.norm(x)))  # the line of gelu
        return y


class Odd(nn.Module):
    """Two blocks, and an operator that no converter has."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(x)
        added: torch.Tensor = x + torch.linalg.matrix_exp(x)
        return added


def saved(folder: Path, module: nn.Module, example: tuple[torch.Tensor, ...]) -> Path:
    """The prepared program as the load step leaves it."""
    program, _ = prepare(export_program(module, example), example)
    path = folder / "program.pt2"
    torch.export.save(program, path)
    return path


def verdicts(runtime: str, path: Path) -> dict[str, Verdict]:
    found = check.check_worker({"runtime": runtime, "program": str(path)})
    return codec.from_json(dict[str, Verdict], found, where="verdicts")


def described(path: Path) -> dict[str, Operator]:
    found = check.describe_worker({"program": str(path)})
    listed = codec.from_json(tuple[Operator, ...], found, where="operators")
    return {operator.node: operator for operator in listed}


def test_operators_have_their_module_and_source_line(tmp_path: Path) -> None:
    """Preparation exports anew and drops and adds operators; the origins survive the file, too."""
    found = described(saved(tmp_path, Odd().eval(), (torch.zeros(8, 8),)))
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    line = next(i for i, text in enumerate(lines, 1) if "# the line of gelu" in text)
    gelus = [operator for operator in found.values() if operator.op == "aten.gelu"]
    assert [(o.module, o.kind) for o in gelus] == [("blocks.0", "Block"), ("blocks.1", "Block")]
    assert [o.source for o in gelus] == [f"{__file__}:{line}"] * 2
    linears = [operator for operator in found.values() if operator.op == "aten.linear"]
    assert [(o.module, o.kind) for o in linears] == [
        ("blocks.0.linear", "Linear"),
        ("blocks.1.linear", "Linear"),
    ]
    assert [o.source for o in linears] == [f"{__file__}:{line}"] * 2


def test_folded_layers_keep_their_origin(tmp_path: Path) -> None:
    found = described(saved(tmp_path, build(Residual), IMAGE))
    convolutions = [o.module for o in found.values() if o.op == "aten.conv2d"]
    assert convolutions == ["stem.1", "block.1", "block.4"]


@pytest.mark.parametrize("runtime", registry.RUNTIMES)
def test_a_plain_network_converts_and_its_layers_are_int8(runtime: str, tmp_path: Path) -> None:
    path = saved(tmp_path, build(Residual), IMAGE)
    found, named = verdicts(runtime, path), described(path)
    assert found.keys() == named.keys()
    fates = {(named[node].op, verdict.fate) for node, verdict in found.items()}
    assert ("aten.conv2d", "int8") in fates and ("aten.conv2d", "float") not in fates
    assert ("aten.linear", "int8") in fates
    assert ("aten.add", "int8") in fates
    assert not [fate for _, fate in fates if fate in ("fails", "outside")]


@pytest.mark.parametrize("runtime", [name for name in registry.RUNTIMES if name != "torchscript"])
def test_an_operator_that_no_converter_has_fails(runtime: str, tmp_path: Path) -> None:
    path = saved(tmp_path, Odd().eval(), (torch.zeros(8, 8),))
    found, named = verdicts(runtime, path), described(path)
    failed = {named[node].op: v for node, v in found.items() if v.fate == "fails"}
    assert list(failed) == ["aten.linalg_matrix_exp"]
    (verdict,) = failed.values()
    assert "matrix_exp" in verdict.reason and verdict.remedy


def test_what_int8_would_lose_is_said_to_be_float(tmp_path: Path) -> None:
    class Norms(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = nn.functional.elu(nn.functional.group_norm(x, 3))
            return nn.functional.rms_norm(x, (8,)).mean((2, 3))

    path = saved(tmp_path, Norms(), (torch.randn(1, 6, 8, 8),))
    named = described(path)
    expected = {"tflite": {"group_norm", "elu"}, "torchscript": {"mean"}, "onnx": {"rms_norm"}}
    for runtime, lost in expected.items():
        left = {name for name, found in verdicts(runtime, path).items() if found.fate == "float"}
        assert {named[name].op.removeprefix("aten.") for name in left} >= lost


def test_rows_put_problems_first_and_count() -> None:
    nodes = [Operator(f"conv_{i}", "aten.conv2d") for i in range(3)]
    nodes += [Operator("erf", "aten.erf"), Operator("relu", "aten.relu")]
    fine = {o.node: Verdict("int8") for o in nodes}
    checks = [
        RuntimeCheck("onnx", fine),
        RuntimeCheck("tflite", {**fine, "erf": Verdict("fails", "no erf")}),
        RuntimeCheck("executorch", error="not installed"),
    ]
    rows = check.rows(nodes, checks)
    assert [(row.op, len(row.operators)) for row in rows] == [
        ("aten.erf", 1),
        ("aten.conv2d", 3),
        ("aten.relu", 1),
    ]
    assert rows[0].verdicts.keys() == {"onnx", "tflite"}
    assert [c.converts for c in checks] == [True, False, False]


def test_the_worst_part_decides() -> None:
    every = [Verdict(fate) for fate in FATES]
    assert Counter(check.worst(every[i:]).fate for i in range(len(FATES))) == Counter(FATES)


def test_a_runtime_without_a_checker_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    bare: Any = registry.RuntimeEntry("x", ".x", "m:f", "m:f", "r", "Bare")
    monkeypatch.setattr(registry, "runtimes", lambda: {"bare": bare})
    with pytest.raises(ExportFailed, match="Bare comes without an operator check"):
        check.check_worker({"runtime": "bare", "program": "unused"})
    absent = registry.RuntimeEntry("x", ".x", "m:f", "m:f", "r", "Bare", checker="absent_x:f")
    monkeypatch.setattr(registry, "runtimes", lambda: {"bare": absent})
    with pytest.raises(MissingExtra, match="absent_x"):
        check.check_worker({"runtime": "bare", "program": "unused"})


def test_operators_are_those_of_the_program(tmp_path: Path) -> None:
    program, _ = prepare(export_program(build(Residual), IMAGE), IMAGE)
    assert [o.node for o in operators(program)] == list(
        described(saved(tmp_path, build(Residual), IMAGE))
    )
