"""A small network on its way up the repair ladder."""

from __future__ import annotations

from pathlib import Path

import torch

from edgekit.data import SampleSet
from edgekit.quantize.calibrate import calibrate
from edgekit.quantize.prepare import as_module
from edgekit.quantize.rungs.base import SimulatedJudge, Work, sample_at, spread

#: No drop is below it, so that every rung is climbed.
NEVER_ENOUGH = -1.0


def make_work(
    exported: torch.export.ExportedProgram,
    sets: dict[str, SampleSet],
    folder: Path,
    max_drop: float = NEVER_ENOUGH,
) -> Work:
    reference = as_module(exported)
    calibration = sets["calibration"]

    def samples(limit: int) -> list[tuple[torch.Tensor, ...]]:
        return [sample_at(calibration, i) for i in spread(calibration.n, limit)]

    return Work(
        exported=exported,
        reference=reference,
        program=as_module(torch.export.export(reference, (torch.zeros(1, 3, 32, 32),))),
        ranges=calibrate(reference, lambda: samples(calibration.n)),
        kind="minmax",
        dtype="int8",
        float_nodes=frozenset(),
        calibration=samples,
        judge=SimulatedJudge(reference, sets["choose"], "agreement"),
        max_drop=max_drop,
        notes=folder,
    )
