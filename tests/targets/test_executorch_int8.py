"""The native runner runs what int8 programs leave outside the delegate."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgekit.targets.measure import HostMeasurer
from edgekit.targets.runner import RunnerArguments
from edgekit.types import TensorSpec

torch = pytest.importorskip("torch")


def _program(path: Path, *, delegated: bool) -> None:
    """A quantize-dequantize pair around a softmax; with or without XNNPACK."""
    import executorch.kernels.quantized  # noqa: F401  (registers the out variants)
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    class Rounded(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x):  # type: ignore[no-untyped-def]
            ops = torch.ops.quantized_decomposed
            q = ops.quantize_per_tensor(x, 0.05, 3, -128, 127, torch.int8)
            return torch.softmax(ops.dequantize_per_tensor(q, 0.05, 3, -128, 127, torch.int8), -1)

    from torch.ao.quantization.fx import _decomposed  # noqa: F401  (defines the operators)

    exported = torch.export.export(Rounded().eval(), (torch.ones(1, 8),), strict=False)
    partitioner = [XnnpackPartitioner()] if delegated else []
    lowered = to_edge_transform_and_lower(exported, partitioner=partitioner)
    path.write_bytes(lowered.to_executorch().buffer)


@pytest.mark.parametrize("delegated", [False, True])
def test_quantize_operators_outside_the_delegate_run(
    delegated: bool, cache: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rounded.pte"
    _program(path, delegated=delegated)
    x = np.random.default_rng(0).normal(size=(4, 1, 8)).astype(np.float32)
    measurer = HostMeasurer(cache=cache)
    (found,) = measurer.outputs(
        path, "executorch", [x], [TensorSpec("y", (1, 8), "float32")], workdir=tmp_path
    )
    rounded = (np.clip(np.round(x / 0.05) + 3, -128, 127) - 3) * 0.05
    expected = np.exp(rounded) / np.exp(rounded).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_the_kernels_are_what_makes_it_run(cache: Path, tmp_path: Path) -> None:
    """Without the quantized kernels the same program does not load, and the runner says why."""
    path = tmp_path / "rounded.pte"
    _program(path, delegated=False)
    (runner,) = HostMeasurer(cache=cache).command("executorch")
    copy = tmp_path / "runtime"
    copy.mkdir()
    for file in Path(runner).parent.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
        (copy / file.name).chmod(0o755)
    # A library of the right name that registers nothing.
    empty = copy / "libexecutorch_kernels_quantized.so"
    empty.unlink()
    subprocess.run(
        ["g++", "-shared", "-xc++", "/dev/null", "-o", str(empty), f"-Wl,-soname,{empty.name}"],
        check=True,
    )
    argv = RunnerArguments(str(path), 1, 0).argv()
    done = subprocess.run(
        [copy / "executorch_runner", *argv], capture_output=True, text=True, check=False
    )
    assert done.returncode == 65 and "OperatorMissing" in done.stderr
