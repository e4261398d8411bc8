"""Rewrites of the prepared program, one file and one line each: candidates, tried per runtime.

A rewrite is a function ``apply(gm)`` that edits an ATen graph in place and returns how many places
it changed. It keeps what the program computes, up to float rounding (over 100 dB), unless its
docstring bounds the difference. Which one pays off differs by runtime and by device, so they are
not part of preparation: :mod:`edgekit.quantize.variants` says what to try.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from edgekit import registry
from edgekit.errors import ConfigError

if TYPE_CHECKING:
    from torch import fx

#: In the order in which they are best applied together.
REWRITES: dict[str, str] = {
    "moves_as_slices": "edgekit.quantize.rewrites.moves_as_slices:apply",
    "decompose_attention": "edgekit.quantize.rewrites.decompose_attention:apply",
    "channels_first": "edgekit.quantize.rewrites.channels_first:apply",
    "spell_out_silu": "edgekit.quantize.rewrites.spell_out_silu:apply",
    "fold_hardswish": "edgekit.quantize.rewrites.fold_hardswish:apply",
    "fold_hardsigmoid": "edgekit.quantize.rewrites.fold_hardsigmoid:apply",
}


def applicable(gm: fx.GraphModule) -> tuple[str, ...]:
    """The rewrites that would change something; ``gm`` stays as it is."""
    from edgekit.quantize.rewrites.edit import copy_graph

    return tuple(name for name in REWRITES if _load(name)(copy_graph(gm)))


def apply(gm: fx.GraphModule, names: Iterable[str]) -> dict[str, int]:
    """Apply rewrites in the order given; the program then has to be exported anew.

    No tensor that ``gm`` holds is written into: other programs may share them.

    Returns:
        How many places each of them changed.

    Raises:
        ConfigError: there is no rewrite of that name.
    """
    from edgekit.quantize.rewrites.edit import forget_strides

    changed = {}
    for name in names:
        changed[name] = _load(name)(gm)
        gm.graph.eliminate_dead_code()
    if any(changed.values()):
        forget_strides(gm)
    gm.graph.lint()
    gm.recompile()
    return changed


def _load(name: str) -> Callable[[fx.GraphModule], int]:
    if name not in REWRITES:
        raise ConfigError(
            f"There is no rewrite {name!r}.", remedy=f"Known are: {', '.join(REWRITES)}."
        )
    function: Callable[[fx.GraphModule], int] = registry.load_object(REWRITES[name])
    return function
