"""Which variants of an INT8 artifact are worth trying, by runtime. Data only.

A variant is a set of rewrites of the program, and of operators that stay float. What is fast on one
machine may be slow on another, so the variants that are valid and accurate are all put into the
bundle, and the device times them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """``rewrites`` are names of :data:`edgekit.quantize.rewrites.REWRITES`; ``float_ops`` are
    operators as ``str(node.target)`` gives them, those that the rewrites bring in among them;
    ``schemes`` are those of :attr:`edgekit.types.Recipe.scheme` that it makes sense for."""

    name: str
    rewrites: tuple[str, ...] = ()
    float_ops: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ("static",)


BASE = Variant("", schemes=("float", "static", "dynamic", "weight_only"))

_FOLD = Variant("fold", rewrites=("fold_hardswish", "fold_hardsigmoid"))
_DELEGATED = ("moves_as_slices", "decompose_attention", "spell_out_silu")

#: What won at least 2 % of latency or 1 dB there on some model. TorchScript gets no fold: its
#: quantized ReLU6 is wrong where no layer takes it in.
BY_RUNTIME: dict[str, tuple[Variant, ...]] = {
    "executorch": (
        # Won on MobileNetV3-large in SQNR. Hard swish is one operator of the delegate; folded, it
        # would be two.
        Variant("fold_squeeze_excite", rewrites=("fold_hardsigmoid",)),
        # The delegate has no SiLU, but sigmoid and product.
        Variant("silu_as_product", rewrites=("spell_out_silu",)),
        # All that the delegate takes only in another form; with SiLU alone it is the one above.
        Variant("delegated_forms", rewrites=_DELEGATED, schemes=("dynamic", "static")),
    ),
    "tflite": (
        _FOLD,
        Variant("float_hardswish", float_ops=("aten.hardswish.default",)),
        # The means of layer norms in float: in int8 they cost the accuracy that it wins.
        Variant(
            "channels_first",
            rewrites=("channels_first",),
            float_ops=("aten.convolution.default",),
        ),
    ),
    "onnx": (_FOLD,),
}


def variants(
    runtime: str, scheme: str, applicable: Collection[str], ops: Collection[str]
) -> tuple[Variant, ...]:
    """The variants to make, the plain one first; those that would change nothing are left out.

    Args:
        runtime: name of the runtime.
        scheme: the recipe's.
        applicable: names of the rewrites that change something in the program.
        ops: the operators that occur in it.
    """
    found: dict[tuple[tuple[str, ...], ...], Variant] = {((), ()): BASE}
    for variant in BY_RUNTIME.get(runtime, ()):
        if scheme not in variant.schemes:
            continue
        rewrites = tuple(name for name in variant.rewrites if name in applicable)
        # Operators that only a rewrite brings in are not in the program yet.
        brought_in = bool(rewrites)
        effect = (rewrites, tuple(op for op in variant.float_ops if op in ops or brought_in))
        found.setdefault(effect, Variant(variant.name, *effect, variant.schemes))
    return tuple(found.values())
