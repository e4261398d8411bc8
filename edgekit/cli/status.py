"""``edgekit status``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgekit import codec
from edgekit.cli.options import Config, TargetOption
from edgekit.cli.output import Output
from edgekit.config import DeviceConfig
from edgekit.errors import DeviceError
from edgekit.resolve import resolve_one

if TYPE_CHECKING:
    from rich.console import Console

MEND = (
    "Deploy the same bundle again: what is damaged is sent anew and replaced. Damage in the "
    "release before needs its bundle. If it comes back, the device's storage is failing."
)


def status(
    out: Output,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Only this model's name.")
    ] = None,
    target: TargetOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Re-hash on the device what is active.")
    ] = False,
    config: Config = None,
) -> int:
    """Show what is active on a device.

    The exit code is 4 where something of it is damaged, and what to do is said.
    """
    from edgekit.targets.device import connect

    found = resolve_one(target, DeviceConfig.from_args(config=config).targets)
    with connect(found, progress=out.progress) as device:
        report = device.status(verify=verify)
    active = [item for item in report.activations if model is None or item.model == model]

    def show(console: Console) -> None:
        from edgekit.report import terminal

        console.print(terminal.status_table(active, report.problems, target=found.name))
        if report.problems:
            console.print(f"  -> {MEND}", markup=False)

    document = {
        "target": found.name,
        "active": codec.to_jsonable(active),
        "problems": list(report.problems),
        "remedy": MEND if report.problems else "",
    }
    out.result(document, show)
    return DeviceError.exit_code if report.problems else 0
