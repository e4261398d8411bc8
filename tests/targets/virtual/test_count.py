"""Instructions per inference: the same in every run, and told apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import DeviceError, UsageError
from edgekit.progress import Quiet
from edgekit.targets.virtual.count import count_instructions, inferences
from edgekit.targets.virtual.state import VirtualDevice


def test_an_inference_lies_between_two_readings_of_the_clock() -> None:
    notes = "".join(f"{note}\n" for note in (1, 2, 3, 100, 350, 360, 612))
    assert inferences(notes, 2) == [250, 252]
    with pytest.raises(DeviceError, match="did not see"):
        inferences(notes, 4)
    with pytest.raises(DeviceError, match="did not see"):
        inferences("-1\nx\n", 1)


def test_a_whole_machine_cannot_count(tmp_path: Path) -> None:
    machine = VirtualDevice("x", "rpi4", "bookworm", "vm", tmp_path, "", 0, "pi", 0, "", "")
    with pytest.raises(UsageError, match="whole machine"):
        count_instructions(machine, None, None, (), Quiet())  # type: ignore[arg-type]
