"""A small net, prepared and calibrated, to be exported and run: for the tests of exporters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from edgekit import quality, registry
from edgekit.data import SampleSet
from edgekit.quantize.base import ExportRequest, export
from edgekit.quantize.calibrate import calibrate
from edgekit.quantize.prepare import as_float32, as_module, export_program, flatten, prepare
from edgekit.quantize.ranges import save_ranges
from edgekit.quantize.recipes import RECIPES
from edgekit.targets.measure import HostMeasurer
from edgekit.types import TensorSpec
from tests.quantize.nets import image_inputs, stored

RUNTIMES = sorted(registry.RUNTIMES)
TEST_SAMPLES = 24


@dataclass(frozen=True)
class Case:
    """A prepared model in ``folder``, with test inputs and its float outputs, (n, *shape) each."""

    folder: Path
    input_specs: tuple[TensorSpec, ...]
    output_specs: tuple[TensorSpec, ...]
    calibration: SampleSet
    inputs: tuple[np.ndarray, ...]
    outputs: tuple[np.ndarray, ...]

    @property
    def gm(self) -> torch.fx.GraphModule:
        return as_module(torch.export.load(self.folder / "program.pt2"))

    def export(
        self, runtime: str, recipe_name: str, out: Path, *, float_nodes: Sequence[str] = ()
    ) -> Path:
        """Make one artifact in the folder ``out``, which it must be alone in afterwards."""
        out.mkdir(exist_ok=True)
        recipe = replace(RECIPES[recipe_name], float_nodes=tuple(float_nodes))
        static = recipe.scheme == "static"
        request = ExportRequest(
            runtime=runtime,
            recipe=recipe,
            program=self.folder / "program.pt2",
            inputs=self.input_specs,
            out=out / f"model{registry.RUNTIMES[runtime].extension}",
            ranges=self.folder / "ranges.json" if static else None,
            calibration=self.calibration.path if static else None,
        )
        versions = export(request)
        assert versions["torch"] == torch.__version__.partition("+")[0]
        assert [path for path in out.iterdir() if path != request.out] == [], "nothing left over"
        return request.out

    def run(self, artifact: Path, runtime: str, workdir: Path) -> list[np.ndarray]:
        return HostMeasurer().outputs(
            artifact, runtime, self.inputs, self.output_specs, workdir=workdir
        )

    def sqnr_db(self, artifact: Path, runtime: str) -> list[float]:
        """That of each output against the float model."""
        found = self.run(artifact, runtime, self.folder)
        pairs = zip(self.outputs, found, strict=True)
        return [quality.sqnr_db(wanted, got) for wanted, got in pairs]


def case(
    module: torch.nn.Module, folder: Path, names: Sequence[str], *, first: float = 1.0
) -> Case:
    """A case for image inputs; ``first`` scales the first calibration sample, which must not decide
    alone."""
    calibration = [image_inputs(32, seed=10 + i) for i in range(len(names))]
    for stack in calibration:
        stack[0] *= first
    test = [image_inputs(TEST_SAMPLES, seed=20 + i) for i in range(len(names))]
    return case_of(module, folder, names, calibration, test)


def case_of(
    module: torch.nn.Module,
    folder: Path,
    names: Sequence[str],
    calibration: Sequence[np.ndarray],
    test: Sequence[np.ndarray],
) -> Case:
    """A case for stacked inputs of shape (n, *input shape), for calibration and for testing."""
    samples = [tuple(map(torch.from_numpy, one)) for one in zip(*calibration, strict=True)]
    example, _ = as_float32(module, samples[0])
    program = prepare(export_program(module, example), example)[0]
    torch.export.save(program, folder / "program.pt2")
    save_ranges(folder / "ranges.json", calibrate(as_module(program), lambda: samples))
    with torch.inference_mode():
        outputs = [
            [value.numpy() for value in flatten(module(*map(torch.from_numpy, sample)))]
            for sample in zip(*test, strict=True)
        ]
    stacks = tuple(np.stack(values) for values in zip(*outputs, strict=True))
    return Case(
        folder,
        tuple(_spec(name, stack) for name, stack in zip(names, calibration, strict=True)),
        tuple(_spec(f"output_{i}", stack) for i, stack in enumerate(stacks)),
        stored(folder, calibration, names),
        tuple(test),
        stacks,
    )


def _spec(name: str, stack: np.ndarray) -> TensorSpec:
    return TensorSpec(name, stack.shape[1:], str(stack.dtype), "NCHW" if stack.ndim == 5 else "")
