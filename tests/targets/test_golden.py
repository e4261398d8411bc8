"""What a device's outputs may and may not do before they go live."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.targets import golden
from edgekit.types import GoldenCheck

ONNX = "tiny-onnx-fp32"


def _outputs(bundle: Bundle, noise: float = 0.0) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    own = golden.host_outputs(bundle, bundle.artifact(ONNX))
    return [np.array(a) * (1 + noise * rng.normal(size=a.shape)).astype(np.float32) for a in own]


def _problems(bundle: Bundle, outputs: list[np.ndarray[Any, Any]]) -> list[str]:
    return golden.broken_promises(golden.compare(bundle, bundle.artifact(ONNX), outputs))


def test_the_same_outputs_keep_every_promise(bundle: Bundle) -> None:
    replayed = golden.compare(bundle, bundle.artifact(ONNX), _outputs(bundle))
    assert golden.broken_promises(replayed) == []
    assert {check.sqnr_db_host for check in replayed.checks} == {200.0}
    assert replayed.top1_agreement == 1.0 and replayed.n == 16


def test_rounding_differences_of_another_cpu_are_fine(bundle: Bundle) -> None:
    assert _problems(bundle, _outputs(bundle, 1e-5)) == []


def test_noise_is_named_per_output(bundle: Bundle) -> None:
    outputs = _outputs(bundle)
    outputs[7] = outputs[7] * 1.1
    problems = _problems(bundle, outputs)
    assert len(problems) == 2 and all("output y7 is at 20.0 dB" in p for p in problems)
    assert "host" in problems[0] and "float model" in problems[1]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_never_pass(bundle: Bundle, value: float) -> None:
    outputs = _outputs(bundle)
    outputs[0][3, 0, 1] = value
    assert any("output y0" in problem for problem in _problems(bundle, outputs))


def test_the_drop_is_of_the_worst_output(bundle: Bundle) -> None:
    outputs = _outputs(bundle)
    outputs[7] = outputs[7][..., ::-1]
    replayed = golden.compare(bundle, bundle.artifact(ONNX), outputs)
    drops = [check.drop for check in replayed.checks]
    assert drops[7] and replayed.drop == drops[7] and not any(drops[:7] + drops[8:])
    assert replayed.top1_agreement == 1.0


def test_what_is_far_from_float_never_passes_even_if_the_host_gave_the_same(
    bundle: Bundle,
) -> None:
    found = golden.broken_promises(_replayed(200.0, -0.3, -0.3, 0.0625))
    assert found == ["output y is at -0.3 dB against the float model (at least 6 dB)"]


def _replayed(host: float, device_float: float, promised: float, drop: float) -> golden.Replayed:
    check = GoldenCheck("y", device_float, 0.1, host, 0.1)
    return golden.Replayed((check,), (promised,), 16, 1 - drop, drop, host_drop=0.0625)


@pytest.mark.parametrize(
    ("host", "device_float", "promised", "drop", "problems"),
    [
        (45.0, 21.5, 22.0, 0.0625, 0),  # int8, usual
        (30.0, 19.1, 22.0, 0.125, 0),  # int8 on another CPU, one sample worse
        (29.9, 21.9, 22.0, 0.0625, 1),  # not the host's outputs
        (45.0, 18.9, 22.0, 0.0625, 1),  # further from float than promised
        (45.0, 21.5, 22.0, 0.1875, 1),  # two samples worse
        (100.0, 98.0, 130.0, 0.0625, 0),  # float: the last digits are nobody's promise
        (100.0, 59.0, 130.0, 0.0625, 1),
    ],
)
def test_the_limits(
    host: float, device_float: float, promised: float, drop: float, problems: int
) -> None:
    found = golden.broken_promises(_replayed(host, device_float, promised, drop))
    assert len(found) == problems, found


def test_other_layouts_are_named(bundle: Bundle) -> None:
    artifact = bundle.artifact(ONNX)
    good = [(spec.dtype, spec.shape) for spec in artifact.outputs]
    assert golden.layout_problem(artifact, good) == ""
    assert "not" in golden.layout_problem(artifact, good[:-1])
    assert "int8" in golden.layout_problem(artifact, [("int8", (1, 4)), *good[1:]])
