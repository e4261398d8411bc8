"""Quantization-aware training: what it gains, and where there is nothing to learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgekit.data import SampleSet
from edgekit.quantize.prepare import export_program, prepare
from edgekit.quantize.rungs import RUNGS
from tests.quantize.rungs.work import make_work


def test_a_short_training_brings_the_outputs_closer(
    exported: torch.export.ExportedProgram, sets: dict[str, SampleSet], tmp_path: Path
) -> None:
    work = make_work(exported, sets, tmp_path)
    before = work.judge(work)
    assert RUNGS["quantization_aware_training"].apply(work) == "", "nothing to learn from"
    assert work.judge(work) == before
    work.training = lambda: work.calibration(16)
    assert RUNGS["quantization_aware_training"].apply(work)
    assert work.judge(work).sqnr_db > before.sqnr_db + 1


class Unlearnable(torch.nn.Module):
    """Nothing in it can be learned, or no output changes with what is."""

    def __init__(self, *, layer: bool) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3) if layer else torch.nn.Sigmoid()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = (self.conv(x) > 0.1).float()
        return found


@pytest.mark.parametrize("layer", [True, False])
def test_where_nothing_can_be_learned_nothing_is_trained(
    layer: bool, sets: dict[str, SampleSet], tmp_path: Path
) -> None:
    inputs = (torch.zeros(1, 3, 32, 32),)
    program = prepare(export_program(Unlearnable(layer=layer).eval(), inputs), inputs)[0]
    work = make_work(program, sets, tmp_path)
    work.training = lambda: work.calibration(4)
    assert RUNGS["quantization_aware_training"].apply(work) == ""


def test_masked_scores_are_no_lesson(sets: dict[str, SampleSet], tmp_path: Path) -> None:
    class Masked(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3, stride=4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            shown = torch.tensor([0.0, 0.0, float("-inf"), 0.0])
            scores: torch.Tensor = self.conv(x).mean((2, 3))
            return scores + shown

    torch.manual_seed(0)
    inputs = (torch.zeros(1, 3, 32, 32),)
    program = prepare(export_program(Masked().eval(), inputs), inputs)[0]
    work = make_work(program, sets, tmp_path)
    work.training = lambda: work.calibration(4)
    before = work.judge(work).sqnr_db
    assert RUNGS["quantization_aware_training"].apply(work)
    assert all(bool(value.isfinite().all()) for value in work.constants().values())
    assert work.judge(work).sqnr_db > before - 1
