"""The rungs of the repair ladder: one file and one line each.

A rung is a function ``apply(work)`` that changes a :class:`edgekit.quantize.rungs.base.Work` in
place and returns a note for the user, or an empty one where it found nothing to change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgekit import registry

if TYPE_CHECKING:
    from edgekit.quantize.rungs.base import Work


@dataclass(frozen=True)
class Rung:
    """A line of the registry.

    ``stage`` orders the application: rungs are climbed cheapest first, but biases are corrected
    after the weights that shift them were rounded. ``only_if_needed`` marks rungs that take minutes
    here or time on the device; they are climbed only where the budget is not kept without them.
    ``by_budget`` marks those that end as soon as it is kept, and so give others for another budget.
    ``dynamic`` marks those that make sense where activations have no range of their own, ``static``
    those that do where they have. ``min_gain_db`` is what it has to gain to be kept.
    """

    name: str
    entry: str
    stage: int
    only_if_needed: bool = False
    by_budget: bool = False
    dynamic: bool = False
    static: bool = True
    min_gain_db: float = 0.1

    def apply(self, work: Work) -> str:
        """Change ``work`` in place; returns a note, empty where nothing was changed."""
        function: Callable[[Work], str] = registry.load_object(self.entry)
        return function(work)


_HERE = "edgekit.quantize.rungs"

#: In climbing order, cheapest first.
RUNGS: dict[str, Rung] = {
    rung.name: rung
    for rung in (
        Rung(
            "outlier_channels",
            f"{_HERE}.outlier_channels:apply",
            stage=0,
            dynamic=True,
            static=False,
            min_gain_db=1.0,  # it costs time on the device
        ),
        Rung("bias_correction", f"{_HERE}.bias_correction:apply", stage=40, dynamic=True),
        Rung("hessian_rounding", f"{_HERE}.hessian_rounding:apply", stage=30, dynamic=True),
        Rung("ranges", f"{_HERE}.ranges:apply", stage=10),
        Rung("adaptive_rounding", f"{_HERE}.adaptive_rounding:apply", 31, only_if_needed=True),
        Rung(
            "float_layers",
            f"{_HERE}.float_layers:apply",
            stage=45,
            only_if_needed=True,
            by_budget=True,
            dynamic=True,
        ),
        Rung(
            "quantization_aware_training",
            f"{_HERE}.quantization_aware_training:apply",
            stage=50,
            only_if_needed=True,
        ),
    )
}
