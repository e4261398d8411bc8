"""One line of advice per layer, by rules on measured facts. Pure, no framework.

The rules are tried in order; the first one whose facts hold speaks. Every line says what was
measured and which rung of the repair ladder or which option cures it. Thresholds are where the
effect is more than half of an error (3 dB), or where a bit of resolution is lost (a factor of 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgekit import registry
from edgekit.quantize.layer_errors import Facts, Measured, Node
from edgekit.types import Recipe

#: More than this share of an error is its cause.
_MOST = 0.5
#: Below this share of the error in place, a layer is not where it comes from.
_INHERITED = 0.1
#: Above this SQNR of its own, a layer needs no cure: int8 gives 35 to 45 dB to well-behaved values.
GOOD_DB = 40.0
#: Two bits of the eight are lost to outliers, channels or parts that need a larger range.
_WASTED = 4.0
#: An RMS of so few steps leaves an SQNR of 29 dB at most: 20 log10(8) + 10.8.
_FEW_STEPS = 8.0

_INT16 = "static_wi8_ai16"


@dataclass(frozen=True, slots=True)
class Case:
    """What advice is given on: a node, its measurement in place, and those of its neighbours."""

    node: Node
    measured: Measured
    recipe: Recipe
    runtime: str
    own_share: float | None
    #: The node of the largest own error among those that this one's error comes from.
    source: Node | None = None


def advise(case: Case) -> str:
    """The line for one layer."""
    facts = case.node.facts
    if facts is None:
        return _in_place_only(case)
    if case.own_share is not None and case.own_share < _INHERITED:
        return _inherited(case)
    if facts.own_sqnr_db >= GOOD_DB:
        return f"adds little itself ({facts.own_sqnr_db:.0f} dB): nothing to cure here"
    return _own(case, facts)


def _own(case: Case, facts: Facts) -> str:
    """Advice where the layer's own error matters."""
    recipe = case.recipe
    if facts.part_spread is not None and facts.part_spread >= _WASTED:
        return (
            f"parts of the concat differ {_times(facts.part_spread)} in range but share one scale: "
            f"keep it in float (float_layers), or return the parts as separate outputs"
        )
    weights = facts.weight_share or 0.0
    if weights >= _MOST:
        return _weights(recipe, facts, weights)
    if recipe.scheme == "dynamic":
        start = f"{1 - weights:.0%} of its own error is its input, rounded by one scale"
        if "outlier_channels" in recipe.steps:
            return f"{start}, outlier channels apart: the float_layers rung"
        return f"{start}: the outlier_channels rung, else float_layers"
    if facts.clip_share >= _MOST:
        return _clipping(case, facts)
    if facts.stretch >= _WASTED:
        rare = f"99.8 % of the values need 1/{facts.stretch:.0f} of the range"
        if recipe.ranges == "minmax":
            return f"{rare}: the ranges rung, which tries narrower ones"
        return f"{rare}, which even {recipe.ranges} ranges keep: {_finer(case)}"
    if facts.channel_spread >= _WASTED:
        return (
            f"its widest channel has {_times(facts.channel_spread)} the range of the median one, "
            f"with one scale for all: {_finer(case)}"
        )
    if facts.steps < _FEW_STEPS:
        return f"the values' RMS spans only {facts.steps:.1f} steps of the grid: {_finer(case)}"
    return f"plain 8-bit rounding of its output, nothing unusual: only {_finer(case)} gives more"


def _finer(case: Case) -> str:
    """What gives a tensor more than eight bits there."""
    has_int16 = _INT16 in registry.runtimes()[case.runtime].recipes
    other = f", or the recipe {_INT16}" if has_int16 and case.recipe.activations == "int8" else ""
    return f"the float_layers rung{other}"


def _weights(recipe: Recipe, facts: Facts, share: float) -> str:
    start = f"{share:.0%} of its own error is rounded weights"
    shift = facts.shift_share or 0.0
    if shift >= _MOST and "bias_correction" not in recipe.steps:
        return f"{start}, {shift:.0%} of that a constant per channel: the bias_correction rung"
    if "hessian_rounding" not in recipe.steps:
        return f"{start}: the hessian_rounding rung"
    if "adaptive_rounding" not in recipe.steps:
        return f"{start}, after hessian_rounding: the adaptive_rounding rung, else float_layers"
    return f"{start}, whatever their rounding: the float_layers rung"


def _clipping(case: Case, facts: Facts) -> str:
    start = f"{_percent(facts.clipped)} of its values are clipped, {facts.clip_share:.0%} of its "
    start += "rounding error"
    if facts.unseen >= facts.clipped / 2:
        return f"{start}: they lie beyond what calibration saw; add such samples to the set"
    if case.recipe.ranges == "minmax":
        return f"{start}: {_finer(case)}"
    return f"{start}: the ranges rung, which tries wider ones"


def _inherited(case: Case) -> str:
    share = case.own_share or 0.0
    start = f"only {_percent(share)} of the error here is its own"
    if case.measured.shift_share >= _MOST and "bias_correction" not in case.recipe.steps:
        shift = f"{case.measured.shift_share:.0%} a constant per channel"
        return f"{start}, {shift}: the bias_correction rung"
    if case.source is None:
        return f"{start}: it comes from the layers before"
    return f"{start}: see {label(case.source)}"


def _in_place_only(case: Case) -> str:
    if case.measured.shift_share >= _MOST and "bias_correction" not in case.recipe.steps:
        return (
            f"{case.measured.shift_share:.0%} of the error is a constant per channel: "
            "the bias_correction rung"
        )
    if case.recipe.scheme == "static":
        return "stays in float; its error comes from the layers before"
    if case.node.layer:
        kind = "run-time" if case.recipe.scheme == "dynamic" else "no"
        return f"int8 weights with {kind} activation ranges: the float_layers rung if it matters"
    return "computes in float; its error comes from the layers before"


def blame(node: Node, nodes: Mapping[str, Node], depth: int = 64) -> Node | None:
    """The node with the largest own error among the ``depth`` nearest before ``node``."""
    waiting, seen = list(node.inputs), set(node.inputs)
    best: Node | None = None
    while waiting and depth:
        found = nodes.get(waiting.pop(0))
        depth -= 1
        if found is None:
            continue
        if found.facts is not None and (best is None or _worse(found.facts, best.facts)):
            best = found
        fresh = [name for name in found.inputs if name not in seen]
        waiting += fresh
        seen.update(fresh)
    return best


def label(node: Node) -> str:
    """What a user knows a node by: the module of a layer with weights; other operators share their
    modules, so they go by their own names."""
    return node.module if node.layer and node.module else node.name


def _worse(one: Facts, other: Facts | None) -> bool:
    return other is None or one.own_sqnr_db < other.own_sqnr_db


def _times(ratio: float) -> str:
    return f"{ratio:.0f}x" if ratio >= 9.5 else f"{ratio:.1f}x"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else f"{share:.2%}" if share >= 0.0001 else "<0.01%"
