"""What `edgekit inspect` tells of a file beyond the figures: operators by placement, size by part,
what the runtime has to be able to do.

One file per format, ``contents_<runtime>.py``, with a function ``contents(path)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgekit import codec, registry
from edgekit.quantize.inspect import inspect_worker, runtime_of
from edgekit.quantize.macs import op_counts
from edgekit.types import OpCount

#: ``delegate``: inside the runtime's accelerated delegate; ``fallback``: outside of it, in the
#: runtime's own kernels. Where a runtime has no delegate: ``int8`` and ``float`` by what is
#: computed, ``convert`` between the two, ``other`` on whole numbers, shapes and truth values.
#: ``unknown``: this machine's runtime cannot load the file.
Placement = Literal["delegate", "fallback", "int8", "float", "convert", "other", "unknown"]


@dataclass(frozen=True, slots=True)
class Placed:
    """The operators of one placement."""

    placement: Placement
    ops: tuple[OpCount, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a file. ``bytes_by_part`` adds up to its size; ``needs`` are sentences."""

    operators: tuple[Placed, ...]
    bytes_by_part: Mapping[str, int]
    needs: tuple[str, ...]


def describe(
    path: Path,
    operators: Mapping[Placement, Mapping[str, int]],
    parts: Mapping[str, int],
    needs: list[str],
) -> Contents:
    """Put contents together; what no part accounts for is structure."""
    known = {name: size for name, size in parts.items() if size}
    rest = path.stat().st_size - sum(known.values())
    if rest > 0:
        known["structure"] = rest
    placed = [
        Placed(place, op_counts(ops)) for place, ops in operators.items() if any(ops.values())
    ]
    return Contents(tuple(placed), known, tuple(needs))


def describe_worker(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Inspection and contents of ``payload["path"]`` for :mod:`edgekit.isolate`, as JSON.

    Contents are None for a runtime of another package, which has an inspector only.
    """
    path = Path(payload["path"])
    inspection = inspect_worker(payload)
    reader = _READERS.get(runtime_of(path))
    found: Contents | None = None
    if reader is not None:
        read: Callable[[Path], Contents] = registry.load_object(reader)
        found = read(path)
    return {
        "inspection": inspection,
        "contents": None if found is None else codec.to_jsonable(found),
    }


_READERS = {
    runtime: f"edgekit.quantize.contents_{runtime}:contents" for runtime in registry.RUNTIMES
}
