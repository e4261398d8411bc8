"""Variants differ in something, the plain one comes first, and there are few of them."""

from __future__ import annotations

import re

import pytest
import torch

from edgekit import registry
from edgekit.quantize import variants as module
from edgekit.quantize.rewrites import REWRITES
from edgekit.quantize.variants import BASE, variants

SCHEMES = ("float", "static", "dynamic", "weight_only")
HARDSWISH = "aten.hardswish.default"
ALL = [variant for made in module.BY_RUNTIME.values() for variant in made]
OPS = sorted({op for variant in ALL for op in variant.float_ops})


@pytest.mark.parametrize("runtime", sorted(registry.RUNTIMES))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_program_without_anything_to_rewrite_has_the_plain_variant_only(
    runtime: str, scheme: str
) -> None:
    assert variants(runtime, scheme, (), ("aten.conv2d.default",)) == (BASE,)


@pytest.mark.parametrize("runtime", sorted(registry.RUNTIMES))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_variants_are_few_and_differ(runtime: str, scheme: str) -> None:
    for applicable in (tuple(REWRITES), ("fold_hardsigmoid",), ("spell_out_silu",)):
        made = variants(runtime, scheme, applicable, OPS)
        assert made[0] == BASE
        assert len(made) <= 4
        assert len({variant.name for variant in made}) == len(made)
        assert len({(variant.rewrites, variant.float_ops) for variant in made}) == len(made)
        assert all(set(variant.rewrites) <= set(applicable) for variant in made)


def test_every_rewrite_is_tried_somewhere_and_every_operator_exists() -> None:
    assert {name for variant in ALL for name in variant.rewrites} == set(REWRITES)
    for op in OPS:
        namespace, packet, overload = op.split(".")
        assert str(getattr(getattr(getattr(torch.ops, namespace), packet), overload)) == op
    assert set(module.BY_RUNTIME) <= set(registry.RUNTIMES)
    assert all(re.fullmatch("[a-z][a-z0-9_]*", variant.name) for variant in ALL)


def test_rewrites_are_applied_in_the_order_of_the_table() -> None:
    order = list(REWRITES)
    for variant in ALL:
        assert list(variant.rewrites) == sorted(variant.rewrites, key=order.index)


def test_torchscript_never_gets_a_clamp_of_its_own() -> None:
    for variant in module.BY_RUNTIME.get("torchscript", ()):
        assert not {"fold_hardswish", "fold_hardsigmoid"} & set(variant.rewrites)


def test_hard_swish_is_folded_or_left_in_float_for_tflite() -> None:
    made = variants("tflite", "static", ("fold_hardswish", "fold_hardsigmoid"), (HARDSWISH,))
    assert {variant.name for variant in made[1:]} == {"fold", "float_hardswish"}


def test_executorch_gets_all_forms_of_its_delegate_at_once() -> None:
    def rewrites(*applicable: str) -> list[tuple[str, ...]]:
        found = variants("executorch", "static", applicable, ())
        return [variant.rewrites for variant in found]

    assert rewrites("spell_out_silu") == [(), ("spell_out_silu",)]
    assert rewrites("moves_as_slices", "spell_out_silu") == [
        (),
        ("spell_out_silu",),
        ("moves_as_slices", "spell_out_silu"),
    ]
    assert rewrites("decompose_attention") == [(), ("decompose_attention",)]


def test_squeeze_and_excite_is_folded_for_executorch_and_hard_swish_is_not() -> None:
    made = variants("executorch", "static", ("fold_hardswish", "fold_hardsigmoid"), (HARDSWISH,))
    assert [variant.rewrites for variant in made] == [(), ("fold_hardsigmoid",)]


def test_means_that_a_rewrite_brings_in_stay_float() -> None:
    (_, made) = variants("tflite", "static", ("channels_first",), ("aten.layer_norm.default",))
    assert made.float_ops == ("aten.convolution.default",)
    assert variants("tflite", "static", (), ("aten.conv2d.default",)) == (BASE,)
