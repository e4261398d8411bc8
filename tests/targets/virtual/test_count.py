"""Instructions per inference: the same in every run, and told apart."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import DeviceError, UsageError
from edgekit.progress import Quiet
from edgekit.targets.device import connect
from edgekit.targets.virtual.count import RUNS, count_instructions, inferences
from edgekit.targets.virtual.state import VirtualDevice
from tests.targets.conftest import example, make_bundle


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


def _int8(path: Path, model: Any, example: tuple[Any, ...]) -> None:
    """The model as an int8 program of ExecuTorch's, by the vendor's own quantizer."""
    import torch
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from executorch.exir import to_edge_transform_and_lower
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    settings = get_symmetric_quantization_config()
    quantizer = XNNPACKQuantizer().set_module_type(torch.nn.Conv2d, settings)
    prepared = prepare_pt2e(torch.export.export(model, example, strict=False).module(), quantizer)
    prepared(*example)
    program = torch.export.export(convert_pt2e(prepared), example, strict=False)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


@pytest.mark.timeout(1200)
def test_it_is_the_same_in_every_run_and_another_for_int8(
    bookworm_device: VirtualDevice,
    models: Mapping[str, Path],
    float_model: Any,
    cache: Path,
    tmp_path: Path,
) -> None:
    int8 = tmp_path / "tiny-executorch-int8.pte"
    _int8(int8, float_model, example())
    counts = []
    with connect(bookworm_device.target()) as device:
        for name, path in (("fp32", models["executorch"]), ("int8", int8)):
            (tmp_path / name).mkdir()
            bundle = make_bundle({"executorch": path}, float_model, cache, tmp_path / name)
            for _ in range(2):
                (found,) = count_instructions(bookworm_device, device, bundle, [path.stem], Quiet())
                assert found.instructions is not None, found.error
                assert found.spread == 0, "in the steady state all runs are the same"
                assert found.instructions > 5000, "the work of the model, not a gap beside it"
                counts.append(found.instructions)
    first, again, first_int8, again_int8 = counts
    assert first == again and first_int8 == again_int8
    assert first != first_int8
