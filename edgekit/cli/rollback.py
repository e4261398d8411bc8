"""``edgekit rollback``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgekit import codec
from edgekit.cli.options import Config, TargetOption
from edgekit.cli.output import Output
from edgekit.config import DeviceConfig
from edgekit.errors import UsageError
from edgekit.resolve import resolve_one

if TYPE_CHECKING:
    from rich.console import Console


def rollback(
    out: Output,
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="The model's name; default: the only active one."),
    ] = None,
    target: TargetOption = None,
    config: Config = None,
) -> None:
    """Return to the release that was active before."""
    from edgekit.targets.device import connect

    found = resolve_one(target, DeviceConfig.from_args(config=config).targets)
    with connect(found, progress=out.progress) as device:
        active = device.status().activations
        activation = device.rollback(model or _only_model([a.model for a in active], found.name))

    def show(console: Console) -> None:
        console.print(
            f"{found.name}: {activation.model} is back to {activation.artifact_id} "
            f"(release {activation.release}).",
            markup=False,
        )

    out.result({"target": found.name, "active": codec.to_jsonable(activation)}, show)


def _only_model(models: list[str], target: str) -> str:
    if len(models) == 1:
        return models[0]
    if not models:
        raise UsageError(f"Nothing is active on {target}, so there is nothing to return to.")
    raise UsageError(
        f"More than one model is active on {target}.", remedy=f"Name one: {', '.join(models)}."
    )
