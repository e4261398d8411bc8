"""``edgekit doctor``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import codec
from edgekit.cli.options import Config, TargetOption
from edgekit.cli.output import Output, say
from edgekit.cli.tables import table
from edgekit.config import DeviceConfig
from edgekit.environment import Check, check_exporters, check_machine, check_sources
from edgekit.errors import DeviceError
from edgekit.resolve import resolve_target
from edgekit.types import Target

if TYPE_CHECKING:
    from rich.console import Console


def doctor(out: Output, target: TargetOption = None, config: Config = None) -> int:
    """Say which runtimes and exporters work here, and what to install.

    Each is tried in a process of its own: exporters by importing on this machine what they need,
    runtimes by running a self-test on the target (default: local). The exit code is 4 where no
    runtime works.
    """
    known = DeviceConfig.from_args(config=config).targets
    device = resolve_target(target or "local", known)
    groups: dict[str, list[Check]] = {"this machine": check_machine(Path.cwd())}
    with out.progress.stage("Try the exporters"):
        groups["exporters"] = check_exporters()
    groups["model sources"] = check_sources()
    groups[f"runtimes on {device.name}"] = runtimes = _try_runtimes(device, out)

    def show(console: Console) -> None:
        _draw(console, groups)

    document = {
        "target": device.name,
        "checks": {group: codec.to_jsonable(checks) for group, checks in groups.items()},
    }
    out.result(document, show)
    if any(check.ok for check in runtimes):
        return 0
    say(f"edgekit: No runtime works on {device.name}.")
    return DeviceError.exit_code


def _try_runtimes(target: Target, out: Output) -> list[Check]:
    from edgekit.targets.device import connect
    from edgekit.targets.doctor import check_runtimes

    with connect(target, progress=out.progress) as device:
        found = check_runtimes(device, progress=out.progress)
    return [
        Check(
            one.runtime,
            one.ok,
            "" if one.ok else one.message,
            one.remedy,
            {one.runtime: one.version} if one.version else {},
        )
        for one in found
    ]


def _draw(console: Console, groups: Mapping[str, Sequence[Check]]) -> None:
    width = max(len(check.name) for checks in groups.values() for check in checks)
    for group, checks in groups.items():
        rows = [
            ("ok" if check.ok else "--", check.name.ljust(width), _versions(check) or check.detail)
            for check in checks
        ]
        console.print(table(("", group, ""), rows))
        console.print()
    wanted = [(check.name, check.remedy) for checks in groups.values() for check in checks]
    remedies = list(dict.fromkeys(pair for pair in wanted if pair[1]))
    if all(check.ok for checks in groups.values() for check in checks):
        console.print("Nothing is missing.")
    for name, remedy in remedies:
        console.print(f"{name}: {remedy}", markup=False)


def _versions(check: Check) -> str:
    if not check.ok:
        return ""
    named = (f"{name} {version}" for name, version in check.versions.items())
    return check.versions.get(check.name) or ", ".join(named)
