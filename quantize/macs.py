"""What the inspectors of all formats share: one multiply-accumulate count, one summary.

A multiply-accumulate (MAC) belongs to a convolution or a matrix product. It counts as INT8 only
where both of its operands are 8-bit integers when it is computed; an 8-bit weight that is turned
back to float first saves space, not time.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgekit.errors import UsageError
from edgekit.types import Inspection, OpCount

Arithmetic = Literal["float", "static", "dynamic", "weight_only", "wide", "unfused", "other"]

_EXPLAIN: Mapping[Arithmetic, str] = {
    "dynamic": "quantize their activations at run time (dynamic quantization)",
    "weight_only": "have int8 weights that are turned back to float (weight-only quantization)",
    "wide": "have int8 weights and int16 activations",
    "unfused": "are quantized in the file, but this runtime computes them in float",
    "other": "use other integer widths than 8 bit",
}

#: All that read int8 weights, whatever they do with them.
_INT8_WEIGHTS: tuple[Arithmetic, ...] = ("static", "dynamic", "weight_only", "wide", "unfused")

# A whole word of the name: upsample_bilinear2d multiplies no matrices, _trilinear does.
_MULTIPLIES = re.compile(
    r"(?:^|_)(?:conv(?:olution)?(?:[123]d)?|linear|bilinear|trilinear|(?:int|b|add|addb|baddb)?mm|"
    r"(?:add)?mv|matmul|tensordot|einsum|attention|sdpa|lstm|gru|rnn)(?:_|$)"
)
#: How the note about the size begins.
SIZE_NOTE = "bytes by part: "
_PACKING = ("_prepack", "_unpack", "_weight")


@dataclass(frozen=True, slots=True)
class MacOp:
    """A convolution or matrix product: its MACs for one inference and how it computes them.

    ``static``: both operands are int8 tensors with scales fixed in the file. ``dynamic``: int8
    weights, activations quantized when they arrive. ``weight_only``: int8 weights, float
    arithmetic. ``wide``: int8 weights, int16 activations. ``unfused``: quantize-dequantize pairs
    around a float operator. ``other``: other widths. ``delegated`` is None where it cannot be told
    or where the runtime has no delegate.
    """

    op: str
    macs: int
    arithmetic: Arithmetic
    delegated: bool | None = None


def summarise(
    ops: Sequence[MacOp],
    *,
    outside: Mapping[str, int],
    transposes: int,
    quantize_ops: int,
    weight_bytes: int,
    uncounted: Iterable[str] = (),
    notes: Sequence[str] = (),
) -> Inspection:
    """Add up ``ops``. ``uncounted`` names operators that multiply but whose MACs are not known;
    where nothing else is there, the shares are None. They are outside of the shares, so whoever
    relies on a share has to look at ``uncounted_ops`` as well."""
    total = sum(op.macs for op in ops)
    by_arithmetic: Counter[Arithmetic] = Counter()
    for op in ops:
        by_arithmetic[op.arithmetic] += op.macs
    missing = sorted(set(uncounted))
    said = list(notes)
    said += [
        f"{share_text(by_arithmetic[kind] / total)} of MACs {_EXPLAIN[kind]}"
        for kind in _EXPLAIN
        if by_arithmetic[kind]
    ]
    if missing:
        said.append(f"MACs of {', '.join(missing)} are not counted")
    if not total:
        if not missing:
            said.append("no convolution or matrix product in this file")
        return Inspection(
            int8_mac_share=None,
            delegated_share=None,
            outside_ops=op_counts(outside),
            transposes=transposes,
            macs=None if missing else 0,
            quantize_ops=quantize_ops,
            weight_bytes=weight_bytes,
            notes=tuple(said),
            uncounted_ops=tuple(missing),
        )
    known = all(op.delegated is not None for op in ops)
    delegated = sum(op.macs for op in ops if op.delegated)
    return Inspection(
        int8_mac_share=(by_arithmetic["static"] + by_arithmetic["dynamic"]) / total,
        delegated_share=delegated / total if known else None,
        dynamic_mac_share=by_arithmetic["dynamic"] / total,
        int8_weight_mac_share=sum(by_arithmetic[kind] for kind in _INT8_WEIGHTS) / total,
        outside_ops=op_counts(outside),
        transposes=transposes,
        macs=total,
        quantize_ops=quantize_ops,
        weight_bytes=weight_bytes,
        notes=tuple(said),
        uncounted_ops=tuple(missing),
    )


def multiplies(name: str) -> bool:
    """Whether a PyTorch operator of this name (without namespace) is a convolution, a matrix
    product or made of them."""
    return _MULTIPLIES.search(name) is not None and not name.endswith(_PACKING)


def attention_macs(q: Sequence[int], k: Sequence[int], v: Sequence[int]) -> int:
    """Both products of scaled dot-product attention, from the shapes (..., length, width)."""
    return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def op_counts(counts: Mapping[str, int]) -> tuple[OpCount, ...]:
    """Most frequent first, then by name."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return tuple(OpCount(op, count) for op, count in ordered if count)


def share_text(share: float) -> str:
    """``0.5`` as ``50.0 %``; never rounds something to nothing or to all."""
    if 0 < share < 0.0005:
        return "less than 0.1 %"
    if 0.9995 <= share < 1:
        return "more than 99.9 %"
    return f"{100 * share:.1f} %"


def size_note(path: Path, parts: Mapping[str, int]) -> str:
    """Where the bytes of a file went: the named parts, and what remains as structure."""
    total = path.stat().st_size
    named = [f"{name} {size}" for name, size in sorted(parts.items()) if size]
    rest = total - sum(parts.values())
    if rest > 0:
        named.append(f"structure {rest}")
    return f"{SIZE_NOTE}{', '.join(named)}"


def unreadable(path: Path, label: str, why: object) -> UsageError:
    """The error for a file that is damaged, cut short or of another format."""
    return UsageError(
        f"{path} cannot be read as {label}: {why}.",
        remedy="The file is damaged, cut short or of another format. Copy or export it again.",
    )
