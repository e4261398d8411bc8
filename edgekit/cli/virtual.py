"""``edgekit virtual``."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit.cli.output import Output
from edgekit.cli.tables import table
from edgekit.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from edgekit.targets.virtual.state import VirtualDevice


class Action(StrEnum):
    START = "start"
    STOP = "stop"
    LIST = "list"


class Kind(StrEnum):
    USER = "user"
    VM = "vm"


def virtual(
    out: Output,
    action: Annotated[
        Action,
        typer.Argument(
            metavar="ACTION",
            help="start [BOARD]: make a device, and wait until it answers. stop [NAME]: end it and "
            "remove everything of it; without a name, all of them. list: those that there are.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="start: the board, by default rpi4. stop: the device's name."
        ),
    ] = None,
    os: Annotated[
        str,
        typer.Option("--os", help="start: bookworm (Python 3.11) or trixie (Python 3.13)."),
    ] = "bookworm",
    kind: Annotated[
        Kind,
        typer.Option(
            help="start: user, whose programs are emulated on this machine's kernel, or vm, a "
            "whole machine with its own kernel and disk."
        ),
    ] = Kind.USER,
    mirror: Annotated[
        str,
        typer.Option(metavar="URL", help="start: a mirror of Debian instead of deb.debian.org."),
    ] = "",
) -> None:
    """Start, stop and list emulated devices, for want of a board.

    They run a Raspberry Pi's system and real Arm programs, behind a real SSH server; --target NAME
    reaches them in every command. They show that things run, agree and survive; their times are no
    board's.
    """
    if action is Action.START:
        _start(out, name or "rpi4", os, kind, mirror)
    elif action is Action.STOP:
        _stop(out, name)
    else:
        _list(out)


def _start(out: Output, board: str, os: str, kind: Kind, mirror: str) -> None:
    from edgekit.targets.virtual.devices import start

    device = start(board, os, kind.value, mirror=mirror, progress=out.progress)

    def show(console: Console) -> None:
        console.print(
            f"{device.name} runs, emulated, at {device.address}.", markup=False, soft_wrap=True
        )
        console.print(f"Next: edgekit deploy --target {device.name}", markup=False)

    out.result({"device": _document(device)}, show)


def _stop(out: Output, name: str | None) -> None:
    from edgekit.targets.virtual import state
    from edgekit.targets.virtual.devices import stop

    known = state.names(state.home_dir())
    if name is not None and name not in known:
        raise UsageError(
            f"There is no emulated device {name!r}.",
            remedy=f"There are: {', '.join(known)}." if known else "There is none at all.",
        )
    stopped = []
    for one in [name] if name is not None else known:
        with out.progress.stage(f"Stop {one}"):
            stop(one)
        stopped.append(one)

    def show(console: Console) -> None:
        for one in stopped:
            console.print(f"{one} is gone.", markup=False)
        if not stopped:
            console.print("There is no emulated device.")

    out.result({"stopped": stopped}, show)


def _list(out: Output) -> None:
    from edgekit.targets.virtual.devices import devices

    found = devices()

    def show(console: Console) -> None:
        if not found:
            console.print("There is no emulated device. Start one: edgekit virtual start rpi4")
            return
        rows = [
            (d.name, d.board, d.system, d.kind, d.address, "running" if d.running else "off")
            for d in found
        ]
        console.print(table(("emulated", "board", "os", "kind", "address", "state"), rows))

    out.result({"devices": [_document(device) for device in found]}, show)


def _document(device: VirtualDevice) -> dict[str, Any]:
    return {
        "name": device.name,
        "board": device.board,
        "os": device.system,
        "kind": device.kind,
        "emulated": True,
        "running": device.running,
        "address": device.address,
        "identity": str(device.identity),
        "known_hosts": str(device.known_hosts),
        "started_utc": device.started_utc,
    }
