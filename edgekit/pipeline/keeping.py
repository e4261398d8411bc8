"""Which of the artifacts that were made go into the bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgekit.pipeline.assemble import Made


def worth_keeping(made: Sequence[Made], max_drop: float, log: Callable[[str], None]) -> list[Made]:
    """Variants that are the same file as another, or lose too much, are no candidates.

    The INT8 candidate that loses least stays, whatever it loses: where none keeps the budget, it is
    what is shown.

    Args:
        made: in the order in which they stay.
        max_drop: the budget, as a drop of 0..1.
        log: is told of each one that is left out.
    """
    # Read late: it brings numpy.
    from edgekit.quality import within

    int8 = [one for one in made if one.recipe.precision == "int8"]
    best = min(int8, key=lambda one: one.evaluation.choose.drop, default=None)
    kept: list[Made] = []
    seen: set[str] = set()
    for one in made:
        drop = one.evaluation.choose.drop
        if one.recipe.variant and one.export.sha256 in seen:
            log(f"{one.id} is the same file as another variant.")
        elif one.recipe.variant and one is not best and not within(drop, max_drop):
            log(f"{one.id} is left out: it loses {drop:.3g}.")
        else:
            kept.append(one)
            seen.add(one.export.sha256)
    return kept
