"""EfficientNet-Lite0 on the emulated Raspberry Pi 4: every runtime as a device gets it, without
pip, compiler, root or internet there, and the outputs compared with this machine's.

An emulated device shows that things run and agree; no time is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from edgekit import quality
from edgekit.bundle import Bundle, write_bundle, write_raw_tensor
from edgekit.targets.device import Device, connect
from edgekit.targets.runtimes import cache_dir
from edgekit.targets.virtual.state import VirtualDevice
from edgekit.types import Activation, Golden, ProbeRequest, ProbeResult, RawTensor
from tests.fixtures.main_job import MODEL, Job, artifact

INT8 = "static_wi8_ai8"
#: What each system is held to.
ON = {
    "bookworm": ("executorch", "tflite", "onnx", "torchscript"),
    "trixie": ("executorch", "tflite"),
}
#: The one that is activated, which replays the golden inputs once more.
LIVE = "executorch"
CASES = [(system, runtime) for system, runtimes in ON.items() for runtime in runtimes]
#: So many of the bundle's golden samples: an emulated inference takes more than a second.
GOLDEN = 12
#: The user's own, read before tests point the cache elsewhere: wheels are fetched once.
CACHE = cache_dir()
# The first user of the fixtures waits for all of them.
pytestmark = pytest.mark.timeout(1800)


@dataclass(frozen=True)
class Deployed:
    """What a device did with the INT8 artifacts of the bundle."""

    device: Device
    bundle: Bundle
    results: Mapping[str, ProbeResult]
    activation: Activation


@pytest.fixture(scope="module")
def bundle(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """The INT8 files of the main job, with fewer golden samples."""
    folder = tmp_path_factory.mktemp("less-golden")
    with Bundle.open(job.folder / "bundle") as whole:
        names = {artifact(runtime, INT8) for runtime in ON["bookworm"]}
        artifacts = [one for one in whole.manifest.artifacts if one.id in names]
        files = {one.path: whole.file(one.path) for one in artifacts}

        def cut(tensors: tuple[RawTensor, ...]) -> tuple[RawTensor, ...]:
            few = [whole.tensor(tensor)[:GOLDEN] for tensor in tensors]
            made = [
                write_raw_tensor(folder, tensor.path, tensor.name, array)
                for tensor, array in zip(tensors, few, strict=True)
            ]
            files.update({tensor.path: folder / tensor.path for tensor in made})
            return tuple(made)

        golden: Golden = whole.manifest.golden
        assert golden.n > GOLDEN and golden.labels is None
        golden = replace(
            golden,
            n=GOLDEN,
            inputs=cut(golden.inputs),
            outputs=cut(golden.outputs),
            artifact_outputs={name: cut(golden.artifact_outputs[name]) for name in sorted(names)},
        )
        model = whole.manifest.model
        with write_bundle(
            folder / "bundle",
            model=model,
            artifacts=artifacts,
            golden=golden,
            evals=(),
            files=files,
        ) as less:
            yield less


@pytest.fixture(scope="module")
def deployed(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Callable[[str], Deployed]]:
    """Deploys to a system, once."""
    done: dict[str, Deployed] = {}
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())

        def deploy(system: str) -> Deployed:
            if system not in done:
                virtual: VirtualDevice = request.getfixturevalue(f"{system}_device")
                patch.setenv("XDG_CACHE_HOME", str(CACHE.parent))
                device = stack.enter_context(connect(virtual.target()))
                done[system] = _deploy(device, bundle, ON[system])
            return done[system]

        yield deploy


def _deploy(device: Device, bundle: Bundle, runtimes: tuple[str, ...]) -> Deployed:
    chosen = {runtime: bundle.artifact(artifact(runtime, INT8)) for runtime in runtimes}
    # One thread: others spin while they wait, which an emulator on few cores pays for dearly.
    requests = [ProbeRequest(one.id, one.sha256, 1, 0, 0.0) for one in chosen.values()]
    results = dict(zip(runtimes, device.probe(bundle, requests), strict=True))
    return Deployed(device, bundle, results, device.activate(bundle, artifact(LIVE, INT8), 1))


@pytest.mark.parametrize(("system", "runtime"), CASES)
def test_int8_keeps_its_quality_there(
    system: str, runtime: str, deployed: Callable[[str], Deployed]
) -> None:
    there = deployed(system)
    result = there.results[runtime]
    assert result.status == "ok", result.error
    assert result.facts_before.emulated
    assert result.golden and min(check.sqnr_db_float for check in result.golden) >= 20
    # What so few samples agree on is chance (test_main_job holds the model to a bar on 210), but
    # the same here and there but for a close call.
    golden = there.bundle.manifest.golden
    (floats,), (ours,) = golden.outputs, golden.artifact_outputs[artifact(runtime, INT8)]
    here = quality.agreement(golden.metric, there.bundle.tensor(floats), there.bundle.tensor(ours))
    assert here is not None and result.top1_agreement is not None
    assert result.top1_agreement >= here - 1.01 / GOLDEN


@pytest.mark.parametrize(
    ("system", "runtime"), [case for case in CASES if case[1] in ("executorch", "tflite")]
)
def test_outputs_are_the_hosts_within_one_step(
    system: str, runtime: str, deployed: Callable[[str], Deployed]
) -> None:
    there = deployed(system)
    tensors = there.bundle.manifest.golden.artifact_outputs[artifact(runtime, INT8)]
    for check, tensor in zip(there.results[runtime].golden, tensors, strict=True):
        step = quantization_step(there.bundle.tensor(tensor))
        assert check.max_abs_err_host <= 1.001 * step


def quantization_step(values: np.ndarray[Any, Any]) -> float:
    """The distance of neighbouring values of a dequantized INT8 output."""
    known = np.unique(values.astype(np.float64))
    step = float(np.diff(known).min())
    assert len(known) <= 256 and step > 0
    assert np.allclose(known / step, np.round(known / step), atol=0.05), "not on one grid"
    return step


@pytest.mark.parametrize("system", ON)
def test_it_is_live_and_whole_and_nothing_is_sent_twice(
    system: str, deployed: Callable[[str], Deployed]
) -> None:
    there = deployed(system)
    assert there.activation.model == MODEL
    status = there.device.status(verify=True)
    assert status.problems == () and status.activations == (there.activation,)
    pushed = there.device.push(there.bundle, [artifact(r, INT8) for r in ON[system]])
    assert pushed.sent_bytes == 0 and pushed.present_blobs > 0
