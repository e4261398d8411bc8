"""Constants behind a layer go into its weight and bias: one number, or one per channel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgekit.quantize.graph import ATEN
from tests.quantize.rewrites.graphs import Builder, compare, program, rewritten, targets

NAMES = ["fold_affine"]


class LayerScale(nn.Module):
    """ConvNeXt's block: the linear layers see channels last, the scale sees them first."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
        self.scale = nn.Parameter(torch.tensor([0.1, -2.0, 3.0, 0.5]).view(4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.down(torch.relu(self.up(x.permute(0, 2, 3, 1))))
        return torch.add(x, self.scale * y.permute(0, 3, 1, 2))


def test_layer_scale_goes_through_a_permutation() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 5, 5)
    count, result, db = rewritten(program(LayerScale(), x), "fold_affine", x)
    assert count == 1
    assert db > 100
    assert ATEN.mul.Tensor not in targets(result)


@pytest.mark.parametrize(
    ("target", "constant"),
    [
        (ATEN.mul.Tensor, 0.5),
        (ATEN.mul.Tensor, -3),
        (ATEN.div.Tensor, 7.0),
        (ATEN.add.Tensor, 3.0),
        (ATEN.sub.Tensor, 2.0),
        (ATEN.mul.Tensor, torch.tensor([1.0, -2.0, 3.0]).view(3, 1, 1)),
        (ATEN.div.Tensor, torch.tensor([1.0, -2.0, 3.0]).view(1, 3, 1, 1)),
        (ATEN.add.Tensor, torch.tensor([1.0, -2.0, 3.0]).view(1, 3, 1, 1)),
        (ATEN.sub.Tensor, torch.tensor([[[[5.0]]]])),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_every_kind_of_constant(target: Any, constant: Any, bias: bool) -> None:
    net = Builder(2, 4)
    other = net.constant(constant) if isinstance(constant, torch.Tensor) else constant
    gm = net.finish(net.call(target, net.conv(net.input, 3, bias=bias), other))
    assert compare(gm, NAMES, net.example) == {"fold_affine": 1}


def test_a_constant_on_the_left_and_two_in_a_row() -> None:
    net = Builder(2, 4)
    left = net.call(ATEN.mul.Tensor, net.constant(torch.tensor(4.0)), net.conv(net.input))
    gm = net.finish(net.call(ATEN.add.Tensor, left, 1.0))
    assert compare(gm, NAMES, net.example) == {"fold_affine": 2}


@pytest.mark.parametrize(("groups", "channels"), [(1, 3), (2, 4)])
def test_a_transposed_convolution_has_its_channels_elsewhere(groups: int, channels: int) -> None:
    net = Builder(2, 4)
    weight = net.constant(net.normal(2, channels // groups, 2, 2))
    layer = net.call(
        ATEN.conv_transpose2d.input, net.input, weight, None, [2, 2], [0, 0], [0, 0], groups
    )
    scale = net.constant(net.normal(channels, 1, 1))
    gm = net.finish(net.call(ATEN.mul.Tensor, layer, scale))
    assert compare(gm, NAMES, net.example) == {"fold_affine": 1}


def test_what_is_not_the_layers_alone_stays() -> None:
    for case in ("two users", "other axis", "whole map", "grows", "padded", "computed", "clamped"):
        net = Builder(3, 3)
        layer = net.conv(net.input)
        outputs = []
        other: Any = 2.0
        if case == "two users":
            outputs.append(layer)
        elif case == "other axis":
            other = net.constant(net.normal(3))
        elif case == "whole map":
            other = net.constant(net.normal(3, 3))
        elif case == "grows":
            other = net.constant(net.normal(2, 1, 1, 1))
        elif case == "padded":
            layer = net.call(ATEN.pad.default, layer, [1, 1])
        elif case == "computed":
            other = net.call(ATEN.relu.default, net.input)
        else:
            layer = net.call(ATEN.hardtanh.default, layer, 0.0, 6.0)
        gm = net.finish(net.call(ATEN.add.Tensor, layer, other), *outputs)
        assert compare(gm, NAMES, net.example) == {"fold_affine": 0}, case


@settings(max_examples=60, deadline=None)
@given(
    out=st.integers(1, 4),
    moves=st.lists(st.permutations(range(4)), max_size=3),
    constants=st.lists(
        st.tuples(
            st.sampled_from(["mul", "div", "add", "sub"]),
            st.sampled_from(["number", 0, 1, 2, 3]),
            st.floats(0.25, 4) | st.floats(-4, -0.25),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_random_chains_compute_the_same(
    out: int, moves: list[list[int]], constants: list[tuple[str, Any, float]]
) -> None:
    net = Builder(2, 3)
    value = net.conv(net.input, out)
    for order in moves:
        value = net.call(ATEN.permute.default, value, list(order))
    foldable = 0
    for name, axis, number in constants:
        other: Any = number
        channels = [0, 1, 2, 3]
        for order in moves:
            channels = [channels[i] for i in order]
        if axis != "number":
            shape = [1] * 4
            shape[axis] = value.meta["val"].shape[axis]
            other = net.constant(net.normal(*shape).abs() + number)
        value = net.call(getattr(ATEN, name).Tensor, value, other)
        if axis != "number" and channels[axis] != 1 and shape[axis] != 1:
            break
        foldable += 1
    changed = compare(net.finish(value), NAMES, net.example)
    assert changed == {"fold_affine": foldable}
