"""A converter that raises is answered by the smallest part that it fails on, float and INT8."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit.errors import ExportFailed, WorkerCrashed
from edgekit.quantize.base import ExportRequest, export
from edgekit.quantize.calibrate import calibrate
from edgekit.quantize.engine import samples
from edgekit.quantize.graph import ATEN
from edgekit.quantize.locate import locate, where
from edgekit.quantize.prepare import as_module, export_program, prepare
from edgekit.quantize.ranges import load_ranges, save_ranges
from edgekit.quantize.recipes import FP32, STATIC_WI8_AI8
from edgekit.types import TensorSpec
from tests.quantize.nets import stored


class Net(nn.Module):
    def __init__(self, *, odd: bool) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Sigmoid())
        self.tail = nn.Linear(8, 8)
        self.odd = odd

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(x)
        if self.odd:
            x = torch.linalg.matrix_exp(x)
        return torch.erf(self.tail(x))


def request(folder: Path, *, odd: bool, int8: bool) -> ExportRequest:
    torch.manual_seed(0)
    example = (torch.zeros(8, 8),)
    program, _ = prepare(export_program(Net(odd=odd).eval(), example), example)
    torch.export.save(program, folder / "program.pt2")
    spec = TensorSpec("input", (8, 8), "float32")
    made = ExportRequest("onnx", FP32, folder / "program.pt2", (spec,), folder / "out.onnx")
    if not int8:
        return made
    array = np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32)
    calibration = stored(folder, [array], ["input"])
    ranges = calibrate(as_module(program), lambda: samples(calibration))
    save_ranges(folder / "ranges.json", ranges)
    return ExportRequest(
        "onnx",
        STATIC_WI8_AI8,
        made.program,
        made.inputs,
        made.out,
        ranges=folder / "ranges.json",
        calibration=calibration.path,
    )


def test_the_message_names_operator_module_and_line(tmp_path: Path) -> None:
    """The real converter, which has no matrix exponential."""
    with pytest.raises(WorkerCrashed) as caught:
        export(request(tmp_path, odd=True, int8=False))
    message = caught.value.message
    assert "ONNX Runtime cannot convert the model: " in message
    assert (
        "The smallest part that fails by itself is the operator aten.linalg_matrix_exp" in message
    )
    assert "test_locate.py:" in message
    assert "edgekit check" in caught.value.remedy
    assert "Traceback" not in message


def test_a_part_that_only_int8_fails_on_is_given_its_ranges_and_samples(tmp_path: Path) -> None:
    """An exporter that cannot quantize what follows a sigmoid, but converts all to float."""
    seen = []

    def broken(given: ExportRequest) -> Mapping[str, str]:
        gm = as_module(torch.export.load(given.program))
        if given.recipe.scheme == "static":
            assert given.ranges is not None and given.calibration is not None
            seen.append(set(load_ranges(given.ranges)))
            known = {node.name for node in gm.graph.nodes if node.op != "get_attr"}
            assert seen[-1] <= known
            for node in gm.graph.nodes:
                if node.target == ATEN.linear.default:
                    assert node.name in seen[-1]
                if node.target == ATEN.sigmoid.default:
                    raise KeyError(node.name)
        return {}

    culprit = locate(request(tmp_path, odd=False, int8=True), broken, KeyError("sigmoid"))
    assert culprit is not None
    assert [(o.op, o.module) for o in culprit.operators] == [("aten.sigmoid", "head.3")]
    assert len(seen) > 1


def test_another_error_than_the_first_does_not_lead_astray(tmp_path: Path) -> None:
    calls = iter(range(100))

    def moody(given: ExportRequest) -> Mapping[str, str]:
        raise KeyError if next(calls) == 0 else ValueError

    assert locate(request(tmp_path, odd=False, int8=False), moody, KeyError()) is None


def test_a_search_that_breaks_leaves_the_error_alone(tmp_path: Path) -> None:
    made = request(tmp_path, odd=False, int8=False)
    made.program.write_bytes(b"not a program")

    def unused(given: ExportRequest) -> Mapping[str, str]:
        raise AssertionError

    assert where(made, unused, KeyError()) == ""


def test_what_an_exporter_says_itself_is_not_searched(tmp_path: Path) -> None:
    def refuses(given: ExportRequest) -> Mapping[str, str]:
        raise ExportFailed("no such thing")

    assert locate(request(tmp_path, odd=False, int8=False), refuses, KeyError()) is None
