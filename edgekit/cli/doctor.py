"""``edgekit doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.cli.options import Config, TargetOption
from edgekit.cli.output import Output
from edgekit.config import DeviceConfig
from edgekit.environment import check_exporters, check_machine, check_sources
from edgekit.resolve import resolve_target

if TYPE_CHECKING:
    pass


def doctor(out: Output, target: TargetOption = None, config: Config = None) -> int:
    """Say which runtimes and exporters work here, and what to install.

    Each is tried in a process of its own: exporters by importing what they need on this machine,
    runtimes by running a tiny model on the target (default: local).
    """
    from edgekit.targets.doctor import check_runtimes

    known = DeviceConfig.from_args(config=config).targets
    device = resolve_target(target or "local", known)
    with out.progress.stage("machine", 1):
        machine = check_machine(Path.cwd())
    with out.progress.stage("exporters", 1):
        exporters = check_exporters()
    sources = check_sources()
    with out.progress.stage(f"runtimes on {device.name}", 1):
        runtimes = check_runtimes(device)
    return 0
