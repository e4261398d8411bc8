"""Instructions per inference: the same in every run, and told apart."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from edgekit.errors import DeviceError, UsageError
from edgekit.progress import Quiet
from edgekit.targets.virtual.count import RUNS, count_instructions, inferences
from edgekit.targets.virtual.state import VirtualDevice


def readings(runs: int, *steps: int) -> list[int]:
    """The counts at the readings of so many runs, after a start of five readings."""
    return list(itertools.accumulate([10, 7, 9, 3, 5, *(steps * runs)]))


def test_a_run_is_found_among_the_readings_of_the_clock() -> None:
    """Two at least; more where the runtime reads it too. The first run is never taken."""
    assert inferences(readings(RUNS[0], 2, 500), readings(RUNS[1], 2, 500)) == [502] * 4
    assert (
        inferences(readings(RUNS[0], 2, 300, 50, 150), readings(RUNS[1], 2, 300, 50, 150))
        == [502] * 4
    )
    many = readings(RUNS[1], 2, 500)
    many[-1] += 6
    assert inferences(readings(RUNS[0], 2, 500), many) == [508, 502, 502, 502]


@pytest.mark.parametrize("more", [0, 1, 10, 15])
def test_readings_that_fit_no_runs_are_refused(more: int) -> None:
    few = readings(RUNS[0], 2, 500)
    with pytest.raises(DeviceError, match="equally often"):
        inferences(few, [*few, *range(more)])


def test_a_whole_machine_cannot_count(tmp_path: Path) -> None:
    machine = VirtualDevice("x", "rpi4", "bookworm", "vm", tmp_path, "", 0, "pi", 0, "", "")
    with pytest.raises(UsageError, match="whole machine"):
        count_instructions(machine, None, None, (), Quiet())  # type: ignore[arg-type]
