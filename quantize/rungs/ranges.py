"""Other ranges: the kind whose simulated outputs are closest to float, for all tensors at once.

Kinds are compared with biases corrected: what clipping shifts, a bias takes back, so that the kind
which is best without correction need not be the best with it.
"""

from __future__ import annotations

from edgekit.quantize.ranges import KINDS
from edgekit.quantize.rungs import bias_correction
from edgekit.quantize.rungs.base import Work

#: Samples that the kinds are compared on; the winner is judged on all.
_SAMPLES = 32


def apply(work: Work) -> str:
    """Change ``work.kind``."""
    before, constants = work.kind, work.constants()
    found = {}
    for kind in KINDS:
        work.kind = kind
        bias_correction.apply(work)
        found[kind] = work.judge(work, _SAMPLES).sqnr_db
        work.install(constants)
    work.kind = max(found, key=lambda kind: (found[kind], kind == before))
    return f"{work.kind} ranges" if work.kind != before else ""
