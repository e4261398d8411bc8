"""Ranges: what is observed, what is searched, and bad data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgekit.errors import DataError
from edgekit.quantize import graph
from edgekit.quantize.calibrate import BINS, calibrate
from edgekit.quantize.prepare import as_module, export_program, prepare
from edgekit.quantize.ranges import (
    KINDS,
    least_expected_error_range,
    load_ranges,
    save_ranges,
)
from edgekit.quantize.simulate import activation_grid
from tests.quantize.nets import Residual, build, image_inputs


@pytest.fixture(scope="module")
def program() -> torch.fx.GraphModule:
    inputs = (torch.zeros(1, 3, 32, 32),)
    return as_module(prepare(export_program(build(Residual), inputs), inputs)[0])


def feed(stack: np.ndarray) -> list[tuple[torch.Tensor, ...]]:
    return [(torch.from_numpy(sample),) for sample in stack]


def test_every_float_tensor_gets_the_global_extremes(program: torch.fx.GraphModule) -> None:
    stack = image_inputs(6)
    ranges = calibrate(program, lambda: feed(stack))
    placeholder = next(node.name for node in program.graph.nodes if node.op == "placeholder")
    assert ranges[placeholder].minmax[0] == pytest.approx(stack.min())
    assert ranges[placeholder].minmax[1] == pytest.approx(stack.max())
    assert {n.name for n in program.graph.nodes if n.op == "call_function"} <= set(ranges)
    for found in ranges.values():
        for kind in KINDS:
            (least, most), (low, high) = found.minmax, found.of(kind)
            assert least <= low <= 0 <= high <= most, kind


def test_what_only_moves_values_has_the_range_of_its_source(program: torch.fx.GraphModule) -> None:
    ranges = calibrate(program, lambda: feed(image_inputs(3)))
    moved = [n for n in program.graph.nodes if n.target in graph.SAME_VALUES]
    assert moved
    for node in moved:
        assert ranges[node.name] == ranges[node.args[0].name]


def test_a_clamp_bounds_its_range(program: torch.fx.GraphModule) -> None:
    ranges = calibrate(program, lambda: feed(20 * image_inputs(3)))
    clamps = [n.name for n in program.graph.nodes if graph.is_clamp(n)]
    assert clamps
    for name in clamps:
        for kind in KINDS:
            low, high = ranges[name].of(kind)
            assert low == 0 and 0 < high <= 6, kind


def test_ranges_survive_saving(program: torch.fx.GraphModule, tmp_path: Path) -> None:
    ranges = calibrate(program, lambda: feed(image_inputs(2)))
    save_ranges(tmp_path / "ranges.json", ranges)
    assert load_ranges(tmp_path / "ranges.json") == ranges


def test_an_empty_set_is_refused(program: torch.fx.GraphModule) -> None:
    with pytest.raises(DataError, match="empty"):
        calibrate(program, list)


@pytest.mark.parametrize("index", [0, 2])
def test_nan_is_refused_with_the_place(program: torch.fx.GraphModule, index: int) -> None:
    bad = image_inputs(4)
    bad[index, 0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match=f"NaN .* at 'x' on sample {index} "):
        calibrate(program, lambda: feed(bad))


class Masked(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = x.masked_fill(x < 0, self.value)
        nothing = torch.zeros_like(x).masked_fill(x < 9, self.value)
        return torch.softmax(scores, -1), torch.exp(nothing + x)


@pytest.mark.parametrize("value", [-np.inf, float(np.finfo(np.float32).min)])
def test_masks_are_left_out_of_ranges(value: float) -> None:
    module, stack = Masked(value), np.linspace(-1, 3, 24, dtype=np.float32).reshape(3, 1, 8)
    inputs = (torch.from_numpy(stack[0]),)
    gm = as_module(prepare(export_program(module, inputs), inputs)[0])
    ranges = calibrate(gm, lambda: feed(stack))
    by_target = {str(n.target): ranges[n.name] for n in gm.graph.nodes if n.name in ranges}
    scores, nothing = (
        ranges[n.name]
        for n in gm.graph.nodes
        if "masked_fill" in str(n.target) or "where" in n.name
    )
    assert scores.minmax == (0, 3)
    assert scores.histogram[1] > 2
    assert nothing.minmax == (0, 0)
    assert by_target["aten.softmax.int"].minmax[1] <= 1


class Moved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.full((4,), 5.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shift: torch.Tensor = self.shift.view(2, 2)  # type: ignore[operator]
        return x + shift


def test_a_moved_constant_has_the_range_observed() -> None:
    # Not prepared, which would fold it.
    gm = as_module(export_program(Moved(), (torch.zeros(2, 2),)))
    ranges = calibrate(gm, lambda: feed(np.ones((2, 2, 2), np.float32)))
    assert [ranges[n.name].minmax[1] for n in gm.graph.nodes if "view" in n.name] == [5]


def test_constant_samples_give_usable_grids(program: torch.fx.GraphModule) -> None:
    ranges = calibrate(program, lambda: feed(np.zeros((1, 1, 3, 32, 32), np.float32)))
    for found in ranges.values():
        assert activation_grid(*found.of("histogram")).scale > 0


def quantization_error(values: np.ndarray, low: float, high: float) -> float:
    grid = activation_grid(low, high)
    rounded = grid.round(torch.from_numpy(values.copy())).numpy()
    return float(np.mean((rounded - values) ** 2))


def histogram(values: np.ndarray) -> tuple[np.ndarray, float, float]:
    low, high = float(values.min()), float(values.max())
    counts = np.histogram(values.astype(float), BINS, (low, high))[0]
    return counts.astype(float), low, high


@pytest.mark.parametrize("outlier", [0.0, 30.0, 300.0])
def test_the_searched_range_is_no_worse_than_the_extremes(outlier: float) -> None:
    values = np.random.default_rng(1).normal(size=20_000).astype(np.float32)
    if outlier:
        values[0] = outlier
    counts, low, high = histogram(values)
    found = least_expected_error_range(counts, low, high)
    extremes = quantization_error(values, min(low, 0), max(high, 0))
    assert quantization_error(values, *found) <= extremes * 1.02


def test_a_lone_outlier_among_many_is_clipped() -> None:
    values = np.random.default_rng(1).normal(size=1_000_000).astype(np.float32)
    values[0] = 40
    counts, low, high = histogram(values)
    assert least_expected_error_range(counts, low, high)[1] < 20


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=200),
    st.floats(0, 1),
)
def test_the_range_lies_within_the_extremes_and_holds_zero(
    numbers: list[float], zero_share: float
) -> None:
    values = np.array(numbers, np.float32)
    counts, low, high = histogram(values)
    found = least_expected_error_range(counts, low, high, zeros=zero_share * len(values))
    assert min(low, 0) <= found[0] <= 0 <= found[1] <= max(high, 0)
