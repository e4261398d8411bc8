"""Hard swish and hard sigmoid lose their division by six only where all consumers take it in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN
from tests.quantize.rewrites.graphs import Builder, compare, program, rewritten, targets

BOTH = ("fold_hardswish", "fold_hardsigmoid")


class Block(nn.Module):
    """MobileNetV3's: expansion, depthwise, squeeze-excite, projection, and a classifier behind."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.reduce, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.project, self.head = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 6, 1)
        self.classifier = nn.Sequential(
            nn.Linear(6, 7), nn.Hardswish(), nn.Dropout(), nn.Linear(7, 5)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.hardswish(self.expand(x))
        y = nn.functional.hardswish(self.depthwise(y))
        gate = self.excite(torch.relu(self.reduce(nn.functional.adaptive_avg_pool2d(y, 1))))
        x = x + self.project(y * nn.functional.hardsigmoid(gate))
        y = nn.functional.hardswish(self.head(x))
        logits: torch.Tensor = self.classifier(torch.flatten(y.mean((2, 3)), 1))
        return logits


def test_a_whole_block_is_folded() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 8, 8)
    gm = program(Block(), x)
    count, result, db = rewritten(gm, "fold_hardswish", x)
    assert count == 4
    assert db > 100
    assert ATEN.hardswish.default not in targets(result)
    count, result, db = rewritten(result, "fold_hardsigmoid", x)
    assert count == 1
    assert db > 100
    assert ATEN.hardsigmoid.default not in targets(result)
    gated = [layer for layer in graph.layers(result) if layer.activation is not None]
    assert [str(layer.activation.target) for layer in gated if layer.activation] == [
        "aten.relu.default",
        "aten.hardtanh.default",
    ], "the gate's clamp is fused into its layer"


@pytest.mark.parametrize(
    "consumer",
    [
        ATEN.sigmoid.default,
        ATEN.relu6.default,
        ATEN.hardswish.default,
        ATEN.gelu.default,
        ATEN.exp.default,
    ],
)
def test_a_consumer_that_cannot_take_the_factor_stops_it(consumer: object) -> None:
    net = Builder(4, 6)
    swish = net.call(ATEN.hardswish.default, net.conv(net.input))
    gm = net.finish(net.conv(swish), net.call(consumer, swish))
    assert compare(gm, ["fold_hardswish"], net.example) == {"fold_hardswish": 0}


def test_an_output_a_residual_and_a_padding_with_ones_stop_it() -> None:
    for case in ("output", "residual", "padding", "computed weight"):
        net = Builder(4, 6)
        swish = net.call(ATEN.hardswish.default, net.conv(net.input))
        if case == "output":
            last = swish
        elif case == "residual":
            last = net.conv(net.call(ATEN.add.Tensor, swish, net.input))
        elif case == "padding":
            last = net.conv(net.call(ATEN.pad.default, swish, [1, 1], "constant", 1.0))
        else:
            kernel = net.call(ATEN.view.default, swish, (4, 4, 3, 3))
            last = net.call(ATEN.conv2d.default, net.input, kernel)
        gm = net.finish(last) if case != "computed weight" else net.finish(net.conv(swish), last)
        assert compare(gm, ["fold_hardswish"], net.example) == {"fold_hardswish": 0}, case


def test_two_consumers_and_a_sum_of_equally_scaled_values_take_it_in() -> None:
    net = Builder(4, 6)
    left = net.call(ATEN.hardswish.default, net.conv(net.input))
    right = net.call(ATEN.hardswish.default, net.conv(net.input))
    both = net.call(ATEN.add.Tensor, left, right)
    gm = net.finish(net.conv(left), net.conv(both), net.conv(both, bias=False))
    assert compare(gm, ["fold_hardswish"], net.example) == {"fold_hardswish": 2}


def test_a_source_that_is_stopped_leaves_those_it_meets_alone() -> None:
    net = Builder(4, 6)
    left = net.call(ATEN.hardswish.default, net.conv(net.input))
    right = net.call(ATEN.hardswish.default, net.conv(net.input))
    both = net.call(ATEN.add.Tensor, left, right)
    alone = net.call(ATEN.hardswish.default, net.conv(net.input))
    gm = net.finish(net.conv(both), net.call(ATEN.sigmoid.default, left), net.conv(alone))
    assert compare(gm, ["fold_hardswish"], net.example) == {"fold_hardswish": 1}


def test_a_weight_that_another_layer_uses_too_is_left_to_it() -> None:
    net = Builder(4, 6)
    weight, bias = net.constant(net.normal(4, 4, 1, 1)), net.constant(net.normal(4))
    first = net.call(ATEN.conv2d.default, net.input, weight, bias)
    swish = net.call(ATEN.hardswish.default, first)
    gm = net.finish(net.call(ATEN.conv2d.default, swish, weight, bias))
    assert compare(gm, ["fold_hardswish"], net.example) == {"fold_hardswish": 1}


def test_a_hard_sigmoid_without_a_layer_of_its_own_stays() -> None:
    net = Builder(4, 6)
    shared = net.conv(net.input)
    gate = net.call(ATEN.hardsigmoid.default, shared)
    free = net.call(ATEN.hardsigmoid.default, net.call(ATEN.relu.default, net.input))
    gated = net.call(ATEN.mul.Tensor, shared, gate)
    gm = net.finish(net.conv(gated), net.conv(net.call(ATEN.mul.Tensor, net.input, free)))
    assert compare(gm, ["fold_hardsigmoid"], net.example) == {"fold_hardsigmoid": 0}


def test_a_layer_without_bias_gets_one() -> None:
    net = Builder(4, 6)
    gate = net.call(ATEN.hardsigmoid.default, net.conv(net.input, bias=False))
    gm = net.finish(net.conv(net.call(ATEN.mul.Tensor, net.input, gate)))
    assert compare(gm, ["fold_hardsigmoid"], net.example) == {"fold_hardsigmoid": 1}


STEPS = (
    "conv",
    "hardswish",
    "hardswish",
    "squeeze_excite",
    "add",
    "mul",
    "cat",
    "relu",
    "relu6",
    "max_pool",
    "pool",
    "sigmoid",
)


@settings(max_examples=150, deadline=None)
@given(
    channels=st.sampled_from([1, 3, 8]),
    size=st.sampled_from([1, 5]),
    ratio=st.sampled_from([1, 4]),
    steps=st.lists(
        st.tuples(st.sampled_from(STEPS), st.integers(0, 99), st.integers(0, 99)),
        min_size=2,
        max_size=14,
    ),
    seed=st.integers(0, 9),
)
def test_random_programs_compute_the_same(
    channels: int, size: int, ratio: int, steps: list[tuple[str, int, int]], seed: int
) -> None:
    net = Builder(channels, size, seed)
    values, products = [net.conv(net.input)], 0
    for step, first, second in steps:
        a, b = values[-1 - first % min(3, len(values))], values[second % len(values)]
        if step == "conv":
            made = net.conv(a)
        elif step == "squeeze_excite":
            made = net.conv(net.squeeze_excite(a, ratio))
        elif step == "add":
            made = net.call(ATEN.add.Tensor, a, b)
        elif step == "mul" and products < 2:  # each squares the size of the values
            products += 1
            made = net.conv(net.call(ATEN.mul.Tensor, a, b))
        elif step == "cat":
            made = net.conv(net.call(ATEN.cat.default, [a, b], 1), channels)
        elif step == "max_pool":
            made = net.call(ATEN.max_pool2d.default, a, [3, 3], [1, 1], [1, 1])
        elif step == "pool":
            pooled = net.call(ATEN.mean.dim, a, [2, 3], True)
            made = net.call(ATEN.mul.Tensor, b, net.conv(pooled))
        elif step != "mul":
            made = net.call(getattr(ATEN, step).default, a)
        values.append(made)
    gm = net.finish(net.conv(values[-1]), values[len(values) // 2])
    compare(gm, BOTH, net.example)
