"""What each layer adds by itself: made-up faults are found, sized and named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import fx, nn

from edgekit.quantize import graph
from edgekit.quantize.calibrate import calibrate
from edgekit.quantize.layer_errors import Facts, Node
from edgekit.quantize.own_errors import own_errors
from edgekit.quantize.prepare import as_module, export_program, prepare
from edgekit.quantize.ranges import KINDS, Range
from edgekit.quantize.recipes import RECIPES
from edgekit.types import Recipe
from tests.quantize.nets import Computed, Residual, build, image_inputs

STATIC = RECIPES["static_wi8_ai8"]
SAMPLES = [(torch.from_numpy(array),) for array in image_inputs(8, seed=3)]


class Heads(nn.Module):
    """Boxes up to hundreds and scores up to one, in one tensor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([320 * x, torch.sigmoid(x)], 1)


def programs(module: nn.Module) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The prepared program, twice."""
    program, _ = prepare(export_program(module, SAMPLES[0]), SAMPLES[0])
    return as_module(program), _copy(as_module(program))


def _copy(gm: fx.GraphModule) -> fx.GraphModule:
    """Constants of its own, so that changing one program leaves the other."""
    for layer in graph.layers(gm):
        for name in (layer.weight, layer.bias):
            if name is not None:
                graph.set_attribute(gm, name, graph.attribute(gm, name))
    return gm


def facts_of(
    reference: fx.GraphModule,
    repaired: fx.GraphModule,
    *,
    recipe: Recipe = STATIC,
    ranges: Mapping[str, Range] | None = None,
) -> dict[str, Facts | None]:
    found = ranges or calibrate(reference, lambda: SAMPLES)
    nodes = own_errors(reference, repaired, found, recipe, SAMPLES)
    return {node.name: node.facts for node in nodes}


@pytest.fixture
def residual() -> tuple[fx.GraphModule, fx.GraphModule]:
    return programs(build(Residual))


Pair = tuple[fx.GraphModule, fx.GraphModule]


def known(facts: Mapping[str, Facts | None]) -> dict[str, Facts]:
    return {name: one for name, one in facts.items() if one is not None}


def scaled(found: Range, factor: float) -> Range:
    return replace(found, **{kind: tuple(e * factor for e in found.of(kind)) for kind in KINDS})  # type: ignore[arg-type]


def test_a_sound_network_has_small_errors_everywhere(residual: Pair) -> None:
    facts = known(facts_of(*residual))
    assert len(facts) >= 6
    assert all(30 < one.own_sqnr_db < 80 for one in facts.values()), facts
    assert all(one.unseen == 0 for one in facts.values()), "calibrated on these very samples"


def test_coarse_weights_are_told_from_a_coarse_output(residual: Pair) -> None:
    reference, repaired = residual
    layer = list(graph.layers(repaired))[1]
    weight = graph.attribute(repaired, layer.weight)
    step = weight.abs().amax((1, 2, 3), keepdim=True) / 7
    graph.set_attribute(repaired, layer.weight, (weight / step).round() * step)
    facts = known(facts_of(reference, repaired))
    worst = min(facts, key=lambda name: facts[name].own_sqnr_db)
    assert worst == layer.output.name
    assert (facts[worst].weight_share or 0) > 0.9 and facts[worst].clip_share < 0.9


def test_a_constant_shift_counts_until_biases_are_corrected(residual: Pair) -> None:
    reference, repaired = residual
    # Without a clamp behind it, a shift in the weights' sum arrives whole.
    layer = next(x for x in graph.layers(repaired) if x.activation is None)
    before = known(facts_of(reference, repaired))[layer.name]
    weight = graph.attribute(repaired, layer.weight).clone()
    graph.set_attribute(repaired, layer.weight, weight * 1.05)
    shifted = known(facts_of(reference, repaired))[layer.name]
    assert shifted.own_sqnr_db < before.own_sqnr_db - 3
    assert shifted.shift_share is not None and shifted.shift_share > 0.1
    assert layer.bias is not None
    bias = graph.attribute(repaired, layer.bias)
    graph.set_attribute(repaired, layer.bias, bias + 0.25)
    corrected = known(facts_of(reference, repaired))[layer.name]
    assert corrected.own_sqnr_db > shifted.own_sqnr_db, "whatever the correction itself is"
    assert corrected.shift_share == pytest.approx(shifted.shift_share)


def test_a_narrow_range_clips_and_a_wide_one_wastes_steps(residual: Pair) -> None:
    reference, repaired = residual
    ranges = calibrate(reference, lambda: SAMPLES)
    name = next(x for x in graph.layers(reference) if x.activation is None).name
    sound = known(facts_of(reference, repaired, ranges=ranges))[name]
    narrow = {**ranges, name: scaled(ranges[name], 0.25)}
    cut = known(facts_of(reference, repaired, ranges=narrow))[name]
    assert cut.own_sqnr_db < sound.own_sqnr_db - 10
    assert (
        cut.clip_share > 0.9
        and cut.clipped > 0.01
        and cut.unseen == pytest.approx(cut.clipped, rel=0.2)
    )
    wide = {**ranges, name: scaled(ranges[name], 16)}
    coarse = known(facts_of(reference, repaired, ranges=wide))[name]
    assert coarse.stretch > 8 and coarse.clip_share == 0
    assert coarse.steps == pytest.approx(sound.steps / 16, rel=0.05)


def test_the_facts_of_one_channel_that_is_larger_than_the_others() -> None:
    torch.manual_seed(0)
    module = nn.Conv2d(3, 8, 3).eval()
    module.weight.data[5] *= 30
    facts = known(facts_of(*programs(module)))
    (layer,) = (one for name, one in facts.items() if name.startswith("conv2d"))
    assert 10 < layer.channel_spread < 90
    assert layer.weight_spread == pytest.approx(30, rel=0.5)


def test_parts_of_a_concat_are_compared() -> None:
    facts = known(facts_of(*programs(Heads().eval())))
    # 320 times values within [-1, 1], against a sigmoid of them.
    assert 320 * 2 < (facts["cat"].part_spread or 0) < 1000
    assert all(one.part_spread is None for name, one in facts.items() if name != "cat")


def test_what_the_recipe_leaves_in_float_has_no_facts(residual: Pair) -> None:
    reference, repaired = residual
    head = list(graph.layers(reference))[-1].name
    facts = facts_of(reference, repaired, recipe=replace(STATIC, float_nodes=(head,)))
    assert facts[head] is None and len(known(facts)) == len(facts) - 1


def test_weight_only_recipes_have_the_error_of_their_weights_only(residual: Pair) -> None:
    facts = facts_of(*residual, recipe=RECIPES["weight_only_wi8_afp32"], ranges={"": _NO_RANGE})
    assert {name for name, one in facts.items() if one} == {
        layer.output.name for layer in graph.layers(residual[0])
    }
    assert all(one.weight_share == 1.0 and one.steps == 0 for one in known(facts).values())


def test_layers_of_constants_and_with_computed_biases_have_facts() -> None:
    # Not prepared, which would fold what is small of it.
    program = export_program(build(Computed), SAMPLES[0])
    reference, repaired = as_module(program), _copy(as_module(program))
    facts = known(facts_of(reference, repaired, recipe=RECIPES["dynamic_wi8_afp32"]))
    assert len(facts) == 3 and all(20 < one.own_sqnr_db < 60 for one in facts.values())


def test_nodes_know_their_operator_their_source_and_what_is_before_them() -> None:
    torch.manual_seed(0)
    reference, repaired = programs(build(Residual))
    ranges = calibrate(reference, lambda: SAMPLES)
    nodes = {n.name: n for n in own_errors(reference, repaired, ranges, STATIC, SAMPLES)}
    first = next(iter(nodes.values()))
    assert (first.op, first.inputs) == ("input", ())
    stem = next(node for node in nodes.values() if node.layer)
    assert stem.op.startswith("conv2d+") and stem.inputs == (first.name,)
    (addition,) = (node for node in nodes.values() if node.op == "add")
    assert len(addition.inputs) == 2 and not addition.layer
    assert addition.source.partition(":")[0].endswith("nets.py"), addition
    assert isinstance(stem, Node)


_NO_RANGE = Range(*(((0.0, 0.0),) * 4))


def test_numbers_stay_finite_for_constant_tensors() -> None:
    class Zero(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x - 1000.0)

    for one in known(facts_of(*programs(Zero().eval()))).values():
        values = [v for v in (getattr(one, n) for n in Facts.__dataclass_fields__) if v is not None]
        assert np.isfinite(values).all(), one


class Patches(nn.Module):
    """A convolution, and linear layers behind it: what dynamic INT8 leaves, and what it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up, self.down = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        found: torch.Tensor = self.down(torch.relu(self.up(tokens)))
        return found


def test_dynamic_int8_rounds_linear_layers_and_their_inputs() -> None:
    torch.manual_seed(0)
    module = Patches().eval()
    module.conv.weight.data[0] *= 50
    found = facts_of(*programs(module), recipe=RECIPES["dynamic_wi8_afp32"], ranges={})
    (up,) = (facts for name, facts in found.items() if facts is not None and name == "relu")
    assert {name for name, facts in found.items() if facts is not None} == {"relu", "linear_1"}
    assert up.weight_share is not None and up.weight_share < 0.5
    assert 10 < up.own_sqnr_db < 60
