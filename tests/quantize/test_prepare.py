"""Preparation keeps what the model computes and leaves a program that is easy to quantize."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit import quality
from edgekit.errors import SourceError
from edgekit.quantize import graph
from edgekit.quantize.graph import ATEN
from edgekit.quantize.prepare import (
    as_module,
    export_program,
    flatten,
    prepare,
    run,
)
from tests.quantize.nets import Residual, TwoOutputs, build, image_inputs


def prepared(module: nn.Module, *inputs: torch.Tensor) -> tuple[torch.fx.GraphModule, set[str]]:
    program, passes = prepare(export_program(module, inputs), inputs)
    return as_module(program), set(passes)


def targets(gm: torch.fx.GraphModule) -> list[object]:
    return [node.target for node in gm.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(("net", "count"), [(Residual, 1), (TwoOutputs, 2)])
def test_computes_what_the_eager_model_computes(net: type[nn.Module], count: int) -> None:
    module = build(net)
    inputs = tuple(torch.from_numpy(image_inputs(1, seed)[0]) for seed in range(count))
    gm, _ = prepared(module, *inputs)
    for seed in range(10, 14):
        sample = tuple(torch.from_numpy(image_inputs(1, seed + i)[0]) for i in range(count))
        for eager, ours in zip(flatten(module(*sample)), run(gm, sample), strict=True):
            assert quality.sqnr_db(eager.numpy(), ours.numpy()) > 100


def test_folds_batch_norm_and_symmetric_pads_and_drops_dropout() -> None:
    gm, passes = prepared(build(Residual), torch.zeros(1, 3, 32, 32))
    found = targets(gm)
    assert {"fold_batch_norm", "fold_padding"} <= passes
    assert ATEN._native_batch_norm_legit_no_training.default not in found
    assert ATEN.dropout.default not in found
    assert found.count(ATEN.pad.default) == 1, "the uneven pad stays, the symmetric one is folded"


def test_every_layer_has_a_bias_and_knows_its_activation() -> None:
    gm, _ = prepared(build(Residual), torch.zeros(1, 3, 32, 32))
    layers = list(graph.layers(gm))
    assert len(layers) == 4
    assert all(layer.bias is not None for layer in layers)
    assert [layer.activation is not None for layer in layers] == [True, True, False, False]


def test_in_place_operators_are_made_functional() -> None:
    gm, _ = prepared(build(TwoOutputs), *[torch.zeros(1, 3, 16, 16)] * 2)
    assert not [t for t in targets(gm) if str(t).split(".")[1].endswith("_")]


def test_each_use_of_a_shared_layer_is_a_layer_of_its_own() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            twice: torch.Tensor = self.conv(torch.relu(self.conv(x)))
            return twice

    module = build(Shared)
    sample = torch.from_numpy(image_inputs(1)[0])
    gm, passes = prepared(module, sample)
    first, second = graph.layers(gm)
    assert "own_constants" in passes
    assert first.bias is not None
    assert second.bias is not None
    assert first.weight != second.weight
    assert first.bias != second.bias
    weights = [graph.attribute(gm, layer.weight) for layer in (first, second)]
    assert torch.equal(*weights)
    assert weights[0].data_ptr() != weights[1].data_ptr()
    assert quality.sqnr_db(module(sample).numpy(), run(gm, (sample,))[0].numpy()) > 100


def test_a_layer_whose_output_is_also_used_elsewhere_is_not_fused() -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.conv(x)
            return torch.relu(y) + y

    gm, _ = prepared(build(Forked), torch.zeros(1, 3, 4, 4))
    (layer,) = graph.layers(gm)
    assert layer.activation is None


def test_control_flow_on_data_is_refused_with_a_remedy() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(SourceError, match=r"torch\.export cannot trace") as caught:
        export_program(Branching(), (torch.zeros(1, 3),))
    assert "torch.where" in caught.value.remedy
