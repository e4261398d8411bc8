"""The recipes by name. Data only: what a name means, saved beside every artifact it made.

Names say how activations are quantized, then the weights' and the activations' types: ``wi8`` are
int8 weights, ``ai8`` and ``ai16`` integer activations, ``afp32`` float ones.
"""

from __future__ import annotations

from edgekit.types import Recipe

FP32 = Recipe("fp32", "fp32", ranges="", per_channel=False)

#: Static INT8: int8 per-channel weights, int8 per-tensor activations, float32 inputs and outputs.
STATIC_WI8_AI8 = Recipe(
    "static_wi8_ai8", "int8", ranges="histogram", scheme="static", activations="int8"
)
#: As static INT8, with int16 activations: nearly float accuracy, where a runtime has the kernels.
STATIC_WI8_AI16 = Recipe(
    "static_wi8_ai16", "int8", ranges="minmax", scheme="static", activations="int16"
)
#: int8 matrix products whose activations are quantized by their own extremes at run time.
DYNAMIC_WI8_AFP32 = Recipe("dynamic_wi8_afp32", "int8", scheme="dynamic")
#: int8 weights that are turned into float32 before use: a small file, no faster arithmetic.
WEIGHT_ONLY_WI8_AFP32 = Recipe("weight_only_wi8_afp32", "int8", scheme="weight_only")

RECIPES = {
    recipe.name: recipe
    for recipe in (
        FP32,
        STATIC_WI8_AI8,
        STATIC_WI8_AI16,
        DYNAMIC_WI8_AFP32,
        WEIGHT_ONLY_WI8_AFP32,
    )
}

#: What an artifact must hold of the multiply-accumulates that its recipe quantizes
#: (:func:`edgekit.quantize.promise.promised_share`): in int8 or, with float or int16 activations,
#: with int8 weights. Dynamic INT8 promises every linear layer, for which converters may count a
#: little differently.
MIN_INT8_MAC_SHARE = {
    "static_wi8_ai8": 0.95,
    "static_wi8_ai16": 0.95,
    "dynamic_wi8_afp32": 0.98,
    "weight_only_wi8_afp32": 0.95,
}
