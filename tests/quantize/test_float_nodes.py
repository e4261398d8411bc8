"""Nodes that a recipe leaves in float are float in every runtime, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import quality
from edgekit.errors import ExportFailed
from edgekit.quantize.float_nodes import float_closure
from edgekit.quantize.graph import ATEN
from edgekit.quantize.inspect import inspect_file
from tests.quantize.cases import RUNTIMES, Case, case
from tests.quantize.nets import Residual, build

STATIC = "static_wi8_ai8"
BOXES = 4

Moved = Callable[[torch.Tensor], torch.Tensor]


class Heads(nn.Module):
    """Boxes up to 320 and scores up to 1, joined as detectors join them and then moved."""

    def __init__(self, move: Moved) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.boxes, self.scores = nn.Conv2d(8, BOXES, 1), nn.Conv2d(8, 3, 1)
        self.move = move

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.stem(x))
        boxes = 320 * torch.sigmoid(2 * self.boxes(features)).flatten(2)
        scores = torch.sigmoid(2 * self.scores(features)).flatten(2)
        return self.move(torch.cat([boxes, scores], 1))


MOVES: dict[str, Moved] = {
    "as it is": lambda joined: joined,
    "transposed": lambda joined: joined.transpose(1, 2),
    "viewed": lambda joined: joined.reshape(1, 7, 16, 16),
    "cut": lambda joined: joined[:, :, 8:].permute(0, 2, 1),
}


def heads(move: str, folder: Path) -> tuple[Case, str]:
    torch.manual_seed(0)
    given = case(Heads(MOVES[move]).eval(), folder, ["x"])
    (joined,) = (node.name for node in given.gm.graph.nodes if node.target == ATEN.cat.default)
    return given, joined


def parts_db(given: Case, found: np.ndarray) -> list[float]:
    """SQNR of boxes and of scores, whatever axis they lie on."""
    wanted = given.outputs[0]
    axis = next(i for i, size in enumerate(wanted.shape) if size == BOXES + 3)
    return [
        quality.sqnr_db(np.take(wanted, rows, axis), np.take(found, rows, axis))
        for rows in (range(BOXES), range(BOXES, BOXES + 3))
    ]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("move", MOVES)
def test_parts_of_a_float_concatenation_keep_their_own_scales(
    move: str, runtime: str, tmp_path: Path
) -> None:
    given, joined = heads(move, tmp_path)
    artifact = given.export(runtime, STATIC, tmp_path / "out", float_nodes=[joined])
    (found,) = given.run(artifact, runtime, tmp_path)
    assert min(parts_db(given, found)) > 25, parts_db(given, found)
    share = inspect_file(artifact).int8_mac_share
    assert share is not None and share > 0.95


def test_int8_concatenation_of_different_ranges_clips_nothing(tmp_path: Path) -> None:
    given, _ = heads("as it is", tmp_path)
    artifact = given.export("executorch", STATIC, tmp_path / "out")
    (found,) = given.run(artifact, "executorch", tmp_path)
    assert quality.sqnr_db(given.outputs[0], found) > 30


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_float_layer_is_float_and_the_others_are_not(runtime: str, tmp_path: Path) -> None:
    given = case(build(Residual), tmp_path, ["x"])
    layers = [node.name for node in given.gm.graph.nodes if node.target == ATEN.conv2d.default]
    whole = inspect_file(given.export(runtime, STATIC, tmp_path / "int8"))
    artifact = given.export(runtime, STATIC, tmp_path / "mixed", float_nodes=layers[:1])
    mixed = inspect_file(artifact)
    assert whole.int8_mac_share == 1 and mixed.macs == whole.macs
    first = 8 * 16 * 16 * 3 * 9
    assert mixed.macs is not None and mixed.int8_mac_share is not None
    assert mixed.int8_mac_share == pytest.approx(1 - first / mixed.macs)
    assert given.sqnr_db(artifact, runtime)[0] > 25


class Reader(nn.Module):
    """A value that is returned as it is, and read by a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.relu(self.a(x))
        return features, self.b(features)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_float_value_is_rounded_for_int8_readers_only(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = case(Reader().eval(), tmp_path, ["x"])
    relu = next(node.name for node in given.gm.graph.nodes if node.target == ATEN.relu.default)
    artifact = given.export(runtime, STATIC, tmp_path / "out", float_nodes=[relu])
    features, after = given.sqnr_db(artifact, runtime)
    assert features > 80 and 30 < after < 80


def test_what_is_fused_and_what_is_moved_is_float_too(tmp_path: Path) -> None:
    given, joined = heads("cut", tmp_path)
    gm = given.gm
    by_op = {node.target: node.name for node in gm.graph.nodes}
    after = {by_op[op] for op in (ATEN.slice.Tensor, ATEN.permute.default) if op in by_op}
    assert float_closure(gm, [joined]) == {joined} | after and after
    stem = next(node.name for node in gm.graph.nodes if node.target == ATEN.conv2d.default)
    relu = by_op[ATEN.relu.default]
    assert float_closure(gm, [relu]) == float_closure(gm, [stem]) == {stem, relu}


def test_names_of_another_program_are_refused(tmp_path: Path) -> None:
    given, _ = heads("as it is", tmp_path)
    with pytest.raises(ExportFailed, match="does not have: nowhere"):
        given.export("onnx", STATIC, tmp_path / "out", float_nodes=["nowhere"])
