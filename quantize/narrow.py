"""The smallest part of a program that a converter fails on, so that a message can name it.

The program is cut down from behind, then from the front, by halves each time, and every part is
given to the same exporter. A part counts only if it fails in the same way, and what is reported has
been seen to fail by itself; the search is bounded in tries and in time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import fx

from edgekit.quantize.check import Operator
from edgekit.quantize.origins import calls, operators_of
from edgekit.quantize.parts import part

MAX_TRIES = 24
MAX_SECONDS = 90.0

#: Tells whether a part fails in the way that the whole program does.
Fails = Callable[[fx.GraphModule], bool]


@dataclass(frozen=True)
class Culprit:
    """The part that was found: its operators in order, of ``total`` in the program."""

    operators: tuple[Operator, ...]
    total: int
    tries: int

    def __str__(self) -> str:
        counts = Counter(operator.op for operator in self.operators)
        names = ", ".join(f"{op} x{n}" if n > 1 else op for op, n in counts.most_common(5))
        more = f" and {len(counts) - 5} more" if len(counts) > 5 else ""
        what = "operator" if len(self.operators) == 1 else f"{len(self.operators)} operators"
        module = common_module([operator.module for operator in self.operators])
        where = f" in {module}" if module else ""
        source = next((o.source for o in self.operators if o.source), "")
        line = f" ({source})" if source else ""
        return f"the {what} {names}{more}{where}{line}"


def smallest_failure(
    gm: fx.GraphModule,
    fails: Fails,
    *,
    max_tries: int = MAX_TRIES,
    max_seconds: float = MAX_SECONDS,
) -> Culprit | None:
    """Cut a failing program down.

    Args:
        gm: an ATen graph module with node metadata, which fails as a whole.
        fails: is given parts of it as modules.
        max_tries, max_seconds: where the search stops with what it has; a try that is under way is
            not interrupted.

    Returns:
        None where nothing smaller than the program could be found to fail.
    """
    nodes = list(calls(gm))
    started, tries = time.monotonic(), 0

    def left() -> bool:
        return tries < max_tries and time.monotonic() - started < max_seconds

    def fails_between(start: int, end: int) -> bool:
        nonlocal tries
        tries += 1
        return fails(part(gm, nodes[start:end]))

    low, end = 0, len(nodes)
    while end - low > 1 and left():
        middle = (low + end) // 2
        low, end = (low, middle) if fails_between(0, middle) else (middle, end)
    start, high = 0, end
    while high - start > 1 and left():
        middle = (start + high) // 2
        start, high = (middle, high) if fails_between(middle, end) else (start, middle)
    if end - start == len(nodes):
        return None
    found = {node.name for node in nodes[start:end]}
    return Culprit(
        tuple(operator for operator in operators_of(gm) if operator.node in found),
        total=len(nodes),
        tries=tries,
    )


def common_module(paths: Sequence[str]) -> str:
    """The innermost module that all of the dotted paths lie in."""
    split = [path.split(".") for path in paths]
    common = []
    for names in zip(*split, strict=False):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    return ".".join(common)
