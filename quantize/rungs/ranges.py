"""Other ranges: the kind whose simulated outputs are closest to float, for all tensors at once."""

from __future__ import annotations

from edgekit.quantize.ranges import KINDS
from edgekit.quantize.rungs.base import Work

#: Samples that the kinds are compared on; the winner is judged on all.
_SAMPLES = 16


def apply(work: Work) -> str:
    """Change ``work.kind``."""
    before = work.kind
    found = {}
    for kind in KINDS:
        work.kind = kind
        found[kind] = work.judge(work, _SAMPLES).sqnr_db
    work.kind = max(found, key=lambda kind: (found[kind], kind == before))
    return f"{work.kind} ranges" if work.kind != before else ""
