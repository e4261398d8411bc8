"""Each rule of the advice speaks where its facts hold, and names what cures them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgekit.quantize.error_advice import Case, advise, blame, label
from edgekit.quantize.layer_errors import Facts, Measured, Node
from edgekit.quantize.recipes import RECIPES
from edgekit.types import Recipe

STATIC = RECIPES["static_wi8_ai8"]
PLAIN = Facts(own_sqnr_db=30.0, weight_share=0.2, steps=30.0)


def case(facts: Facts | None = PLAIN, recipe: object = STATIC, **changes: object) -> Case:
    node = Node("conv2d_1", "conv2d+relu", layer=True, module="features.1", facts=facts)
    given = Case(node, Measured(28.0, 0.0), STATIC, "tflite", own_share=0.6)
    return replace(given, recipe=recipe, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "recipe", "words"),
    [
        (
            replace(PLAIN, weight_share=0.9, shift_share=0.8),
            STATIC,
            ("90% of its own error is rounded weights", "80%", "bias_correction rung"),
        ),
        (replace(PLAIN, weight_share=0.9), STATIC, ("hessian_rounding rung",)),
        (
            replace(PLAIN, weight_share=0.9, shift_share=0.8),
            replace(STATIC, steps=("bias_correction", "hessian_rounding")),
            ("adaptive_rounding rung",),
        ),
        (
            replace(PLAIN, weight_share=0.9),
            replace(STATIC, steps=("hessian_rounding", "adaptive_rounding")),
            ("float_layers rung",),
        ),
        (
            replace(PLAIN, clip_share=0.8, clipped=0.004),
            STATIC,
            ("0.4% of its values are clipped", "80%", "the ranges rung"),
        ),
        (
            replace(PLAIN, clip_share=0.8, clipped=0.004, unseen=0.004),
            STATIC,
            ("beyond what calibration saw",),
        ),
        (
            replace(PLAIN, stretch=12.0),
            replace(STATIC, ranges="minmax"),
            ("1/12 of the range", "the ranges rung"),
        ),
        (replace(PLAIN, stretch=12.0), STATIC, ("histogram ranges keep", "float_layers")),
        (replace(PLAIN, channel_spread=20.0), STATIC, ("20x", "the float_layers rung")),
        (replace(PLAIN, part_spread=320.0), STATIC, ("concat", "320x", "share one scale")),
        (replace(PLAIN, steps=3.0), STATIC, ("only 3.0 steps", "static_wi8_ai16")),
        (PLAIN, STATIC, ("nothing unusual",)),
        (replace(PLAIN, own_sqnr_db=45.0, weight_share=0.9), STATIC, ("nothing to cure here",)),
    ],
)
def test_a_layer_with_an_error_of_its_own(
    facts: Facts, recipe: object, words: tuple[str, ...]
) -> None:
    said = advise(case(facts, recipe))
    assert all(word in said for word in words), said
    assert "\n" not in said


def test_an_error_that_comes_from_before_names_where() -> None:
    source = Node("conv2d", "conv2d", layer=True, module="features.0", facts=PLAIN)
    said = advise(case(own_share=0.02, source=source))
    assert "only 2.0% of the error here is its own" in said and "see features.0" in said
    assert "the layers before" in advise(case(own_share=0.02))


def test_a_shift_that_comes_from_before_is_cured_by_bias_correction_unless_it_was_tried() -> None:
    shifted = Measured(20.0, 0.7)
    assert "bias_correction" in advise(case(own_share=0.02, measured=shifted))
    tried = replace(STATIC, steps=("bias_correction",))
    assert "bias_correction" not in advise(case(own_share=0.02, measured=shifted, recipe=tried))


def test_what_dynamic_int8_loses_by_its_inputs() -> None:
    dynamic, facts = RECIPES["dynamic_wi8_afp32"], Facts(20.0, weight_share=0.2)
    advice = advise(case(facts, dynamic))
    assert advice.startswith("80% of its own error is its input") and "outlier_channels" in advice
    tried = replace(dynamic, steps=("outlier_channels",))
    assert "float_layers" in advise(case(facts, tried))
    assert "weights" in advise(case(replace(facts, weight_share=0.8), dynamic))


def test_what_stays_float_has_no_error_of_its_own() -> None:
    assert "stays in float" in advise(case(None))
    assert "run-time" in advise(case(None, RECIPES["dynamic_wi8_afp32"]))


def test_blame_finds_the_worst_of_those_before() -> None:
    def node(name: str, own: float, *inputs: str) -> Node:
        return Node(name, "conv2d", inputs=inputs, facts=replace(PLAIN, own_sqnr_db=own))

    nodes = {
        n.name: n
        for n in (node("a", 35), node("b", 15, "a"), node("c", 25, "b"), node("d", 5, "a"))
    }
    end = Node("end", "add", inputs=("c",))
    found = blame(end, nodes)
    assert found is not None and found.name == "b", "d is worse, but not before it"
    assert blame(Node("x", "input"), nodes) is None
    assert found == blame(end, nodes, depth=2) and blame(end, nodes, depth=1) == nodes["c"]


def test_labels_tell_nodes_apart() -> None:
    layer = Node("conv2d", "conv2d", layer=True, module="features.0")
    assert label(layer) == "features.0"
    assert label(replace(layer, module="")) == "conv2d"
    assert label(Node("add_1", "add", module="features")) == "add_1"


@pytest.mark.parametrize(
    ("runtime", "recipe", "offered"),
    [
        ("tflite", STATIC, True),
        ("onnx", STATIC, False),
        ("tflite", RECIPES["static_wi8_ai16"], False),
    ],
)
def test_finer_activations_are_offered_where_a_runtime_has_them(
    runtime: str, recipe: Recipe, offered: bool
) -> None:
    advice = advise(case(replace(PLAIN, steps=3.0), recipe, runtime=runtime))
    assert "the float_layers rung" in advice
    assert ("the recipe static_wi8_ai16" in advice) is offered
