"""Channels of almost no weight keep their bias in integers, whatever the runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgekit import quality, registry
from edgekit.quantize import graph
from edgekit.quantize.dead_channels import raise_dead_channels
from edgekit.quantize.ranges import load_ranges
from edgekit.quantize.recipes import RECIPES
from tests.quantize.cases import RUNTIMES, Case, case, case_of

WEIGHTS = (0.0, 1e-12, 1e-6, -1e-6, 1e-4)
INT16 = [name for name in RUNTIMES if "static_wi8_ai16" in registry.RUNTIMES[name].recipes]


class Faded(nn.Module):
    """The first channels of every layer have next to no weights, and biases all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.grouped = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3, 2, groups=8)
        self.up, self.head = nn.ConvTranspose2d(8, 8, 2, 2), nn.Linear(8, 8)
        for layer in (self.conv, self.grouped, self.head):
            for channel, value in enumerate(WEIGHTS):
                layer.weight.data[channel] = value
            layer.bias = nn.Parameter(torch.linspace(-0.6, 0.8, 8))
        for channel, value in enumerate(WEIGHTS):
            self.up.weight.data[:, channel] = value

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        first = self.conv(x)
        second = self.grouped(first)
        third = self.up(second)
        return first, second, third, self.head(third.mean((2, 3)))


@pytest.fixture(scope="module")
def faded(tmp_path_factory: pytest.TempPathFactory) -> Case:
    torch.manual_seed(0)
    return case(Faded().eval(), tmp_path_factory.mktemp("faded"), ["x"])


def worst_channel(given: Case, artifact: Path, runtime: str) -> float:
    """The largest error of a channel's mean, as a share of its output's largest value."""
    errors = []
    for wanted, found in zip(
        given.outputs, given.run(artifact, runtime, given.folder), strict=True
    ):
        axes = tuple(axis for axis in range(wanted.ndim) if axis != 2)
        error = np.abs(wanted.mean(axes) - found.mean(axes)).max()
        errors.append(float(error / np.abs(wanted).max()))
    return max(errors)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_their_biases_are_kept_in_int8(faded: Case, runtime: str, tmp_path: Path) -> None:
    artifact = faded.export(runtime, "static_wi8_ai8", tmp_path / "out")
    assert worst_channel(faded, artifact, runtime) < 0.02
    assert min(faded.sqnr_db(artifact, runtime)) > 30


@pytest.mark.parametrize("runtime", INT16)
def test_their_biases_are_kept_in_int16(faded: Case, runtime: str, tmp_path: Path) -> None:
    artifact = faded.export(runtime, "static_wi8_ai16", tmp_path / "out")
    assert worst_channel(faded, artifact, runtime) < 0.02


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_small_inputs_need_as_much(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    stacks = [[rng.normal(size=(8, 1, 3, 9, 9)).astype(np.float32) * 0.01] for _ in range(2)]
    given = case_of(Faded().eval(), tmp_path, ["x"], *stacks)
    artifact = given.export(runtime, "static_wi8_ai8", tmp_path / "out")
    assert worst_channel(given, artifact, runtime) < 0.02


def test_weights_beside_which_the_bias_fits_stay_as_they_are(faded: Case) -> None:
    program = torch.export.load(faded.folder / "program.pt2")
    recipe, ranges = RECIPES["static_wi8_ai8"], load_ranges(faded.folder / "ranges.json")
    before = {x.name: graph.attribute(faded.gm, x.weight) for x in graph.layers(faded.gm)}
    raised = raise_dead_channels(program, ranges, recipe).module()
    assert isinstance(raised, torch.fx.GraphModule)
    for layer in graph.layers(raised):
        weight = graph.attribute(raised, layer.weight)
        moved = weight.movedim(layer.channel_axis, 0) != before[layer.name].movedim(
            layer.channel_axis, 0
        )
        changed = moved.flatten(1).sum(1).tolist()
        assert changed[-3:] == [0, 0, 0] and max(changed) == 1
        difference = (weight - before[layer.name]).abs().max()
        assert float(difference) < 1e-4
    (wanted, *_), (found, *_) = (
        module(torch.from_numpy(faded.inputs[0][0])) for module in (faded.gm, raised)
    )
    assert quality.sqnr_db(wanted.detach().numpy(), found.detach().numpy()) > 80


class Centred(nn.Module):
    """The average of what was centred is nothing, and the layer behind it only a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, 2), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        found: torch.Tensor = self.head((x - x.mean((2, 3), keepdim=True)).mean((2, 3)))
        return found


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_inputs_of_nothing_leave_the_bias(runtime: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = case(Centred().eval(), tmp_path, ["x"])
    artifact = given.export(runtime, "static_wi8_ai8", tmp_path / "out")
    assert given.sqnr_db(artifact, runtime)[0] > 35
