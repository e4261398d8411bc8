"""What ``edgekit probe --count-instructions`` does and prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli.output import Output, say
from edgekit.cli.tables import table
from edgekit.errors import ExportFailed, UsageError
from edgekit.types import Target

if TYPE_CHECKING:
    from rich.console import Console


def show_counts(
    out: Output, bundle: Path, target: Target, artifacts: Sequence[str], *, strict: bool
) -> int:
    """Counts and prints; returns the exit code: 8 with ``strict`` where an artifact failed."""
    if target.transport != "virtual":
        raise UsageError(
            f"{target.name} is no emulated device: only an emulator can count instructions.",
            remedy="edgekit virtual start rpi4, and --target virtual-rpi4",
        )
    from edgekit.bundle import Bundle
    from edgekit.targets.device import connect
    from edgekit.targets.virtual.count import count_instructions
    from edgekit.targets.virtual.devices import running

    virtual = running(target.address)
    with Bundle.open(bundle) as opened, connect(target, progress=out.progress) as device:
        ids = artifacts or [artifact.id for artifact in opened.manifest.artifacts]
        counts = count_instructions(virtual, device, opened, ids, out.progress)

    def show(console: Console) -> None:
        rows = [
            (
                count.artifact_id,
                count.precision,
                count.error if count.instructions is None else f"{count.instructions:,}",
            )
            for count in counts
        ]
        head = ("artifact", "precision", "instructions per inference (emulated)")
        console.print(table(head, rows))
        console.print("One thread. A number of instructions is no latency.")

    document = {
        "target": target.name,
        "emulated": True,
        "threads": 1,
        "counts": [asdict(count) for count in counts],
    }
    out.result(document, show)
    failed = [count for count in counts if count.instructions is None]
    if strict and failed:
        say(f"edgekit: {len(failed)} artifacts failed, which --strict makes an error.")
        return ExportFailed.exit_code
    return 0
