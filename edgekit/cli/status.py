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
MEND_UNUSED = (
    "Nothing active needs {what}: the next deploy or probe that does sends it anew, and "
    "`edgekit gc` removes it."
)


def status(
    out: Output,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Only this model's name.")
    ] = None,
    target: TargetOption = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Re-hash on the device what is stored there.")
    ] = False,
    config: Config = None,
) -> int:
    """Show what is active on a device.

    The exit code is 4 where something is damaged there, and what to do is said. With a model's
    name, only what that model needs is looked at.
    """
    from edgekit.targets.device import connect

    found = resolve_one(target, DeviceConfig.from_args(config=config).targets)
    with connect(found, progress=out.progress) as device:
        report = device.status(verify=verify, model=model)
    problems = [*report.problems, *report.unused_problems]
    remedies = [MEND] if report.problems else []
    if report.unused_problems:
        what = "what is named last" if report.problems else "that"
        remedies.append(MEND_UNUSED.format(what=what))

    def show(console: Console) -> None:
        from edgekit.report import terminal

        console.print(terminal.status_table(report.activations, problems, target=found.name))
        for remedy in remedies:
            console.print(f"  -> {remedy}", markup=False)

    document = {
        "target": found.name,
        "active": codec.to_jsonable(report.activations),
        "problems": list(report.problems),
        "unused_problems": list(report.unused_problems),
        "remedy": " ".join(remedies),
    }
    out.result(document, show)
    return DeviceError.exit_code if problems else 0
