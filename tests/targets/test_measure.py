"""HostMeasurer: real artifacts, on this machine, from arrays to arrays."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import RunnerFailed
from edgekit.targets import runner
from edgekit.targets.measure import HostMeasurer
from edgekit.types import TensorSpec

Arrays = tuple[np.ndarray[Any, Any], ...]
SPECS = tuple(TensorSpec(f"y{i}", (1, 4), "float32") for i in range(12))


@pytest.mark.parametrize("runtime", ["executorch", "tflite", "onnx", "torchscript"])
def test_outputs_are_those_of_the_float_model(
    runtime: str,
    models: Mapping[str, Path],
    samples: Arrays,
    float_outputs: list[np.ndarray[Any, Any]],
    cache: Path,
    tmp_path: Path,
) -> None:
    found = HostMeasurer(cache=cache).outputs(
        models[runtime], runtime, samples, SPECS, workdir=tmp_path
    )
    assert not list(tmp_path.glob("inputs-*")), "inputs do not stay"
    shutil.rmtree(tmp_path)
    for array, expected in zip(found, float_outputs, strict=True):
        assert array.dtype == np.float32 and not array.flags.writeable
        np.testing.assert_allclose(array, expected, atol=1e-4)


def test_memory_maps_and_strided_inputs_are_read_in_order(
    models: Mapping[str, Path], samples: Arrays, cache: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "image.npy", samples[0])
    mapped = np.load(tmp_path / "image.npy", mmap_mode="r")
    measurer = HostMeasurer(cache=cache)
    straight = measurer.outputs(models["onnx"], "onnx", samples, SPECS, workdir=tmp_path)
    reversed_ = measurer.outputs(
        models["onnx"], "onnx", (mapped[::-1], samples[1][::-1]), SPECS, workdir=tmp_path
    )
    np.testing.assert_array_equal(straight[3], reversed_[3][::-1])


def test_a_raw_file_is_given_as_it_is_and_anything_else_is_written(
    models: Mapping[str, Path],
    samples: Arrays,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maps = []
    for name, array in zip(("image", "gain"), samples, strict=True):
        array.tofile(tmp_path / name)
        maps.append(np.memmap(tmp_path / name, np.float32, "r", shape=array.shape))
    image, gain = maps
    copied = np.memmap(tmp_path / "gain", np.float32, "c", shape=gain.shape)
    copied[:] = 0
    given: list[tuple[str, ...]] = []
    wanted = runner.RunnerArguments

    def recorded(**fields: Any) -> runner.RunnerArguments:
        given.append(fields["inputs"])
        return wanted(**fields)

    monkeypatch.setattr(runner, "RunnerArguments", recorded)
    measurer = HostMeasurer(cache=cache)

    def run(*inputs: np.ndarray[Any, Any]) -> tuple[list[np.ndarray[Any, Any]], list[bool]]:
        found = measurer.outputs(models["onnx"], "onnx", inputs, SPECS, workdir=tmp_path)
        return found, [Path(path).parent == tmp_path for path in given[-1]]

    straight, reused = run(image, gain)
    assert reused == [True, True]
    for inputs in (
        (image[::-1], gain[::-1]),
        (image[1:], gain[1:]),
        (image, copied),
        (np.asarray(image, ">f4"), gain * 1),
    ):
        found, reused = run(*inputs)
        assert reused == [inputs[0] is image, False]
        expected, _ = run(*(np.array(array, np.float32) for array in inputs))
        np.testing.assert_array_equal(found[3], expected[3])
    np.testing.assert_array_equal(run(*samples)[0][3], straight[3])
    (tmp_path / "gain").unlink()
    found, reused = run(image, gain)
    assert reused == [True, False]
    np.testing.assert_array_equal(found[3], straight[3])


def test_other_outputs_than_promised_are_refused(
    models: Mapping[str, Path], samples: Arrays, cache: Path, tmp_path: Path
) -> None:
    wrong = (*SPECS[:-1], TensorSpec("y11", (1, 5), "float32"))
    with pytest.raises(RunnerFailed, match=r"outputs are .* expected"):
        HostMeasurer(cache=cache).outputs(models["onnx"], "onnx", samples, wrong, workdir=tmp_path)


def test_a_hang_ends_at_the_time_limit_and_a_bad_model_is_named(
    models: Mapping[str, Path], samples: Arrays, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunnerFailed) as caught:
        HostMeasurer(cache=cache, timeout_s=0.05).outputs(
            models["torchscript"], "torchscript", samples, SPECS, workdir=tmp_path
        )
    assert caught.value.kind == "timeout"
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(models["onnx"].read_bytes()[:200])
    with pytest.raises(RunnerFailed, match=r"broken\.onnx") as caught:
        HostMeasurer(cache=cache).outputs(broken, "onnx", samples, SPECS, workdir=tmp_path)
    assert caught.value.kind == "model" and caught.value.log_tail


def test_the_native_runner_is_built_once(cache: Path) -> None:
    first = Path(HostMeasurer(cache=cache).command("executorch")[0])
    written = first.stat().st_mtime_ns
    assert first.stat().st_mode & stat.S_IXUSR
    again = Path(HostMeasurer(cache=cache).command("executorch")[0])
    assert again == first and again.stat().st_mtime_ns == written
