"""``edgekit doctor``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit import __version__
from edgekit.cli.options import Config, TargetOption
from edgekit.cli.output import Output
from edgekit.cli.tables import table
from edgekit.config import DeviceConfig
from edgekit.environment import Check, check_exporters, check_machine, check_sources
from edgekit.errors import DeviceError
from edgekit.resolve import resolve_target

if TYPE_CHECKING:
    from rich.console import Console


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
