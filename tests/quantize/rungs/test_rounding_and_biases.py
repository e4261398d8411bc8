"""Simulation, rounding and bias correction: what each must keep, and what each must gain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from edgekit import quality
from edgekit.quantize import graph
from edgekit.quantize.calibrate import calibrate
from edgekit.quantize.patches import sample_patches
from edgekit.quantize.prepare import as_module, export_program, prepare, run
from edgekit.quantize.rungs.adaptive_rounding import round_in_order
from edgekit.quantize.rungs.bias_correction import channel_means, correct_biases
from edgekit.quantize.rungs.hessian_rounding import descend, round_weights
from edgekit.quantize.simulate import (
    activation_grid,
    activation_grids,
    round_weight,
    rounded_nodes,
    run_samples,
    weight_scales,
)
from tests.quantize.nets import Residual, build, image_inputs

Samples = list[tuple[torch.Tensor, ...]]


@pytest.fixture(scope="module")
def exported() -> torch.export.ExportedProgram:
    inputs = (torch.zeros(1, 3, 32, 32),)
    return prepare(export_program(build(Residual), inputs), inputs)[0]


def feed(n: int, seed: int) -> Samples:
    return [(torch.from_numpy(sample),) for sample in image_inputs(n, seed)]


def float_outputs(gm: fx.GraphModule, samples: Samples) -> np.ndarray:
    return np.stack([run(gm, sample)[0].numpy() for sample in samples])


def weight_only_outputs(
    exported: torch.export.ExportedProgram, mended: fx.GraphModule, samples: Samples
) -> np.ndarray:
    gm = as_module(exported)
    for layer in graph.layers(mended):
        weight = graph.attribute(mended, layer.weight)
        graph.set_attribute(gm, layer.weight, round_weight(weight, layer.channel_axis))
        assert layer.bias is not None
        graph.set_attribute(gm, layer.bias, graph.attribute(mended, layer.bias))
    return float_outputs(gm, samples)


@given(st.floats(-1e5, 0), st.floats(0, 1e5), st.lists(st.floats(-2e5, 2e5, width=32), min_size=1))
def test_rounding_to_a_grid_is_idempotent_and_off_by_half_a_step(
    low: float, high: float, values: Sequence[float]
) -> None:
    grid = activation_grid(low, high)
    tensor = torch.tensor(values, dtype=torch.float32)
    once = grid.round(tensor.clone())
    assert torch.allclose(grid.round(once.clone()), once, atol=grid.scale * 1e-3)
    ends = sorted((k - grid.zero_point) * grid.scale for k in (-128, 127))
    inside = (tensor >= ends[0]) & (tensor <= ends[1])
    assert ((once - tensor)[inside].abs() <= grid.scale * 0.501 + 1e-6).all()
    assert float(grid.round(torch.zeros(1))) == 0, "int8 must represent zero"


@given(st.integers(0, 1000))
def test_rounded_weights_stay_where_they_are(seed: int) -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    once = round_weight(weight, 0)
    assert torch.equal(round_weight(once, 0), once)
    assert ((once - weight).abs() <= weight_scales(weight, 0) * 0.5001).all()


def test_only_the_fused_value_of_a_layer_is_rounded(
    exported: torch.export.ExportedProgram,
) -> None:
    gm = as_module(exported)
    names = rounded_nodes(gm)
    for layer in graph.layers(gm):
        assert layer.output.name in names
        assert (layer.name in names) == (layer.activation is None)
    assert not names & {n.name for n in gm.graph.nodes if n.target in graph.SAME_VALUES}


def test_running_node_by_node_computes_the_same(exported: torch.export.ExportedProgram) -> None:
    gm, samples = as_module(exported), feed(3, 7)
    by_node = run_samples(gm, samples, lambda node, values: values)
    for sample, outputs in zip(samples, by_node, strict=True):
        assert torch.equal(outputs[0], run(gm, sample)[0])


def test_rounding_lowers_the_output_error_and_keeps_the_grid(
    exported: torch.export.ExportedProgram,
) -> None:
    mended, samples = as_module(exported), feed(16, 1)
    before = {x.weight: graph.attribute(mended, x.weight).clone() for x in graph.layers(mended)}
    assert round_weights(mended, samples) == 4
    for layer in graph.layers(mended):
        old, new = before[layer.weight], graph.attribute(mended, layer.weight)
        assert torch.allclose(weight_scales(new, 0), weight_scales(old, 0), rtol=1e-5)
        assert torch.allclose(round_weight(new, 0), new, atol=1e-7), "a converter rounds no more"
        assert ((new - old).abs() <= weight_scales(old, 0) * 1.001).all(), "up or down, no further"
    test = feed(16, 2)
    wanted = float_outputs(as_module(exported), test)
    nearest = weight_only_outputs(exported, as_module(exported), test)
    guided = weight_only_outputs(exported, mended, test)
    assert quality.sqnr_db(wanted, guided) > quality.sqnr_db(wanted, nearest) + 1


def test_rounding_is_reproducible(exported: torch.export.ExportedProgram) -> None:
    first, second = (
        as_module(exported),
        as_module(torch.export.export(as_module(exported), (torch.zeros(1, 3, 32, 32),))),
    )
    for gm in (first, second):
        round_weights(gm, feed(8, 1))
    for a, b in zip(graph.layers(first), graph.layers(second), strict=True):
        assert torch.equal(graph.attribute(first, a.weight), graph.attribute(second, b.weight))


def test_rounding_in_order_makes_up_for_inputs_that_are_rounded_already(
    exported: torch.export.ExportedProgram,
) -> None:
    reference, samples = as_module(exported), feed(24, 1)
    grids = activation_grids(reference, calibrate(reference, lambda: samples), "histogram")
    given = (torch.zeros(1, 3, 32, 32),)
    nearest, guided, in_order = (as_module(torch.export.export(reference, given)) for _ in range(3))
    round_weights(guided, samples)
    assert round_in_order(in_order, reference, samples, grids) == 4
    for layer in graph.layers(in_order):
        old, new = (graph.attribute(gm, layer.weight) for gm in (reference, in_order))
        assert torch.allclose(round_weight(new, 0), new, atol=1e-7), "a converter rounds no more"
        assert ((new - old).abs() <= weight_scales(old, 0) * 1.001).all(), "up or down, no further"
    for gm in (nearest, guided):
        correct_biases(gm, channel_means(reference, samples), samples, grids)
    test = feed(24, 2)
    wanted = float_outputs(reference, test)
    found = [
        quality.sqnr_db(wanted, _simulated(gm, test, grids)) for gm in (nearest, guided, in_order)
    ]
    # Rounded activations leave little to win in this network, and nothing may be lost.
    assert found[2] > max(found) - 0.3


def test_flips_are_for_the_inputs_that_the_layer_will_get() -> None:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(12, 12, generator=generator)
    float_inputs = mixed @ torch.randn(12, 4000, generator=generator)
    rounded_inputs = activation_grid(-16.0, 16.0).round(float_inputs * 0.99)
    weight = torch.randn(8, 12, generator=generator)
    wanted = weight @ float_inputs

    def moments(inputs: torch.Tensor) -> torch.Tensor:
        return (inputs @ inputs.T / inputs.shape[1])[None]

    def error(chosen: torch.Tensor) -> float:
        assert torch.allclose(round_weight(chosen, 0), chosen, atol=1e-6)
        return float((chosen @ rounded_inputs - wanted).square().mean())

    symmetric = error(descend(weight, moments(float_inputs)))
    cross = wanted @ rounded_inputs.T / rounded_inputs.shape[1]
    asymmetric = error(descend(weight, moments(rounded_inputs), cross))
    assert asymmetric < 0.9 * symmetric
    assert asymmetric < 0.9 * error(round_weight(weight, 0))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (2, 3, 6)),
        (nn.Conv2d(6, 4, 3, stride=2, padding=1), (1, 6, 9, 7)),
        (nn.Conv2d(6, 9, (3, 2), padding=(0, 1), dilation=(1, 2), groups=3), (1, 6, 9, 8)),
        (nn.Conv2d(6, 12, 3, groups=6), (6, 5, 5)),
        (nn.Conv1d(6, 4, 3, stride=2, padding=1), (1, 6, 9)),
    ],
)
@pytest.mark.parametrize("limit", [10, 1000])
def test_a_layer_is_a_product_over_its_patches(
    layer: nn.Linear | nn.Conv1d | nn.Conv2d, shape: tuple[int, ...], limit: int
) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    gm = as_module(export_program(layer.requires_grad_(False), (x,)))
    (found,) = graph.layers(gm)
    inputs = [x, x * 2]
    outputs = [layer(value) for value in inputs]
    made = sample_patches(
        found, layer.weight, inputs, outputs, limit, torch.Generator().manual_seed(0)
    )
    assert made is not None
    patches, wanted = made
    assert 0 < patches.shape[-1] <= max(limit, sum(y.numel() for y in outputs))
    groups = patches.shape[0]
    bias = layer.bias
    assert bias is not None
    product = layer.weight.flatten(1).view(groups, -1, patches.shape[1]) @ patches
    assert torch.allclose(product.flatten(0, 1) + bias[:, None], wanted, atol=1e-4)


def test_bias_correction_takes_the_mean_shift_away_and_leaves_the_weights(
    exported: torch.export.ExportedProgram,
) -> None:
    reference = as_module(exported)
    mended = as_module(torch.export.export(reference, (torch.zeros(1, 3, 32, 32),)))
    samples = feed(24, 1)
    ranges = calibrate(reference, lambda: samples)
    grids = activation_grids(reference, ranges, "histogram")
    weights = {x.weight: graph.attribute(mended, x.weight).clone() for x in graph.layers(mended)}
    assert correct_biases(mended, channel_means(reference, samples), samples, grids) == 4
    for layer in graph.layers(mended):
        assert torch.equal(graph.attribute(mended, layer.weight), weights[layer.weight])

    def mean_shift(gm: fx.GraphModule) -> float:
        outputs = _simulated(gm, samples, grids)
        return float(np.abs(outputs.mean(0) - float_outputs(reference, samples).mean(0)).max())

    assert mean_shift(mended) < 0.2 * mean_shift(as_module(exported))


def _simulated(gm: fx.GraphModule, samples: Samples, grids: dict) -> np.ndarray:  # type: ignore[type-arg]
    copies = {x.weight: graph.attribute(gm, x.weight).clone() for x in graph.layers(gm)}
    for layer in graph.layers(gm):
        weight = round_weight(copies[layer.weight], layer.channel_axis)
        graph.set_attribute(gm, layer.weight, weight)
    outputs = run_samples(
        gm,
        samples,
        lambda node, values: (
            [grids[node.name].round(value.clone()) for value in values]
            if node.name in grids
            else values
        ),
    )
    for target, weight in copies.items():
        graph.set_attribute(gm, target, weight)
    return np.stack([values[0].numpy() for values in outputs])


@pytest.mark.parametrize(
    ("layer", "shape", "channel"),
    [
        (nn.Linear(8, 4), (8,), 1),
        (nn.Conv2d(3, 4, 3), (3, 8, 8), 1),
        (nn.Conv1d(3, 4, 3), (1, 3, 8), 2),
    ],
)
def test_channel_means_are_kept_with_or_without_a_batch_dimension(
    layer: nn.Module, shape: tuple[int, ...], channel: int
) -> None:
    layer.requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    samples: Samples = [(torch.rand(shape, generator=generator),) for _ in range(32)]
    program, _ = prepare(export_program(layer, samples[0]), samples[0])
    reference, mended = as_module(program), as_module(program)
    grids = activation_grids(reference, calibrate(reference, lambda: samples), "minmax")
    round_weights(mended, samples)
    correct_biases(mended, channel_means(reference, samples), samples, grids)
    (found,) = graph.layers(mended)
    weight = graph.attribute(mended, found.weight)
    graph.set_attribute(mended, found.weight, round_weight(weight, found.channel_axis))
    # A vector becomes a row before the layer reads it.
    (given,) = reference.graph.find_nodes(op="placeholder")
    grid = grids[given.name]
    rounded: Samples = [(grid.round(sample[0].clone()),) for sample in samples]
    expected, means = (
        np.moveaxis(float_outputs(gm, inputs), channel, 0).reshape(4, -1).mean(1)
        for gm, inputs in ((reference, samples), (mended, rounded))
    )
    assert means == pytest.approx(expected, abs=1e-5)
