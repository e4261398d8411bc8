"""What is known about the error of each layer of an INT8 artifact. Data only, no framework.

Two things are measured. *In place* is the runtime's own tensor against the float program's at the
same node: everything that went wrong up to there. *Own* is the error that the layer adds by
itself: its weights and its output rounded as the recipe says, its inputs float. The first is the
artifact's, the second a simulation that all runtimes of a recipe share.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgekit.types import Recipe


@dataclass(frozen=True, slots=True)
class Facts:
    """What was measured about one tensor that the runtime rounds, on float inputs.

    ``own_sqnr_db`` is the layer's own error. Shares are fractions (0..1): ``weight_share`` of the
    own error's power is there before the output is rounded; of what rounding the output adds,
    ``clip_share`` comes from values outside of the range. ``clipped`` is the share of the values
    that are outside of it, ``unseen`` of those beyond everything that calibration saw.

    Ratios are 1 or more: ``stretch`` is the range's width over the width that holds 99.8 % of the
    values; ``channel_spread`` the largest channel's range over the median channel's, of the output;
    ``weight_spread`` the same of the weights; ``part_spread``, for a concatenation, the largest
    part's range over the smallest part's. ``steps`` is how many quantization steps the values' root
    mean square spans. ``shift_share`` is the part of the error before bias correction that is
    constant per channel. None where there is nothing to be measured.
    """

    own_sqnr_db: float
    weight_share: float | None = None
    clip_share: float = 0.0
    clipped: float = 0.0
    unseen: float = 0.0
    stretch: float = 1.0
    channel_spread: float = 1.0
    weight_spread: float | None = None
    part_spread: float | None = None
    steps: float = 0.0
    shift_share: float | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the float program that a runtime may round: what it is and where it comes from.

    ``op`` includes the activation that is fused into a layer (``conv2d+relu``); ``layer`` says that
    it has weights. ``module`` is the dotted path in the model and ``source`` the ``file:line`` of
    the call, both empty where they are not known. ``inputs`` are the nearest nodes before it that
    are rounded themselves. ``facts`` is None where the recipe leaves the node in float.
    """

    name: str
    op: str
    layer: bool = False
    module: str = ""
    source: str = ""
    inputs: tuple[str, ...] = ()
    facts: Facts | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """One node in one artifact: SQNR in dB in place, and which share of the error's power is a
    constant per channel."""

    sqnr_db: float
    shift_share: float


@dataclass(frozen=True, slots=True)
class InPlace:
    """What the worker of one artifact found, by node name.

    ``method`` says whose tensors were read; ``output_sqnr_db`` has the model's outputs in order.
    """

    method: str
    measured: dict[str, Measured]
    output_sqnr_db: tuple[float, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerError:
    """One row of the result: a node of one artifact with its advice.

    ``own_share`` is the own error's power over that of the error in place; above 1 where errors
    cancel, None where either is not known.
    """

    node: Node
    sqnr_db: float
    own_share: float | None
    advice: str


@dataclass(frozen=True, slots=True)
class ArtifactErrors:
    """The errors of one artifact, layers in the order in which they run; ``n`` samples."""

    artifact: str
    runtime: str
    recipe: Recipe
    n: int
    method: str
    output_sqnr_db: tuple[float, ...]
    layers: tuple[LayerError, ...]
    notes: tuple[str, ...] = field(default=())

    def worst(self, count: int = 10) -> tuple[LayerError, ...]:
        """The layers that add most error themselves, worst first.

        Where the own error of none is known, those with the most in place.
        """
        known = [layer for layer in self.layers if layer.node.facts is not None]
        if not known:
            return tuple(sorted(self.layers, key=lambda layer: layer.sqnr_db)[:count])
        return tuple(sorted(known, key=_own)[:count])


def _own(layer: LayerError) -> float:
    assert layer.node.facts is not None
    return layer.node.facts.own_sqnr_db
