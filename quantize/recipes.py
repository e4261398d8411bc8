"""The recipes by name. Data only: what a name means, saved beside every artifact it made."""

from __future__ import annotations

from edgekit.types import Recipe

FP32 = Recipe("fp32", "fp32", steps=("prepare",), ranges="", per_channel=False)

#: Static INT8: int8 per-channel weights, int8 per-tensor activations, float32 inputs and outputs.
STATIC_WI8_AI8 = Recipe(
    "static_wi8_ai8",
    "int8",
    steps=("prepare", "calibrate", "hessian_rounding", "bias_correction"),
    ranges="histogram",
    per_channel=True,
)

RECIPES = {recipe.name: recipe for recipe in (FP32, STATIC_WI8_AI8)}

#: What an artifact of a recipe must hold, as a share of its multiply-accumulates in int8.
MIN_INT8_MAC_SHARE = {"static_wi8_ai8": 0.95}
