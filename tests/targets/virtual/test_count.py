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
from edgekit.targets.runtimes import cache_dir
from edgekit.targets.virtual.count import RUNS, count_instructions, inferences
from edgekit.targets.virtual.state import VirtualDevice
from tests.targets.conftest import example, make_bundle

#: The user's own cache, read before tests point elsewhere: wheels are fetched once.
WHEELS = cache_dir()


def test_the_last_runs_are_taken() -> None:
    """The first ones allocate what later ones find, and the loop ends behind the very last."""
    notes = list(itertools.accumulate([10, 900, 520, *([502] * (RUNS - 4)), 508, 499]))
    assert inferences(notes) == [502, 502, 502, 508]


@pytest.mark.parametrize("count", [0, RUNS, RUNS + 2])
def test_marks_that_fit_no_runs_are_refused(count: int) -> None:
    with pytest.raises(DeviceError, match=f"saw {count} marks"):
        inferences(range(count))


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


@pytest.mark.timeout(1200)
def test_the_runners_in_python_are_counted_too(
    bookworm_device: VirtualDevice,
    models: Mapping[str, Path],
    float_model: Any,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever clocks LiteRT and ONNX Runtime read during a run, and in whichever thread."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(WHEELS.parent))
    chosen = {runtime: models[runtime] for runtime in ("tflite", "onnx")}
    bundle = make_bundle(chosen, float_model, cache, tmp_path)
    names = [path.stem for path in chosen.values()]
    with connect(bookworm_device.target()) as device:
        first, again = (
            count_instructions(bookworm_device, device, bundle, names, Quiet()) for _ in range(2)
        )
    for one, other in zip(first, again, strict=True):
        assert one.instructions is not None, one.error
        assert one.instructions == pytest.approx(other.instructions, rel=0.01)
        assert one.instructions > 5000, "the work of the model, not a gap beside it"
