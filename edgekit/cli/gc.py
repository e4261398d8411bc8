"""``edgekit gc``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgekit.cli.options import Config, TargetOption
from edgekit.cli.output import Output
from edgekit.config import DeviceConfig
from edgekit.resolve import resolve_one
from edgekit.units import megabytes

if TYPE_CHECKING:
    from rich.console import Console


def gc(out: Output, target: TargetOption = None, config: Config = None) -> None:
    """Remove what no active or previous release on a device needs."""
    from edgekit.targets.device import connect

    found = resolve_one(target, DeviceConfig.from_args(config=config).targets)
    with connect(found, progress=out.progress) as device:
        removed = device.gc()

    def show(console: Console) -> None:
        console.print(f"{found.name}: {megabytes(removed)} removed.", markup=False)

    out.result({"target": found.name, "removed_bytes": removed}, show)
