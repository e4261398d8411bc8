"""``edgekit targets``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgekit import codec
from edgekit.cli.options import Config
from edgekit.cli.output import Output
from edgekit.cli.tables import table
from edgekit.config import FILE_NAME, DeviceConfig, find_file
from edgekit.errors import UsageError
from edgekit.files import write_atomic
from edgekit.resolve import profile_names, resolve_target, spelled
from edgekit.types import Target

if TYPE_CHECKING:
    from rich.console import Console


class Action(StrEnum):
    LIST = "list"
    ADD = "add"
    SHOW = "show"
    TRUST = "trust"
    REMOVE = "remove"


def targets(
    out: Output,
    action: Annotated[
        Action,
        typer.Argument(
            metavar="ACTION",
            help="list: what there is. add NAME ADDRESS: write a target into edgekit.toml. "
            "show NAME: its settings, and what the device says of itself. trust NAME: remember the "
            "host keys of an SSH target. remove NAME: take it out of edgekit.toml.",
        ),
    ],
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="A target's name; for show and trust as --target elsewhere."
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Argument(
            metavar="ADDRESS",
            help="[ssh://][USER@]HOST[:PORT], a host of your ssh configuration, adb:SERIAL or "
            "local.",
        ),
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="add: the kind of device, one of `edgekit targets list`.")
    ] = None,
    workdir: Annotated[
        str | None, typer.Option(help="add: edgekit's folder on the device. Default: ~/.edgekit.")
    ] = None,
    python: Annotated[
        str | None, typer.Option(help="add: the Python there. Default: python3.")
    ] = None,
    identity: Annotated[
        str | None, typer.Option(metavar="FILE", help="add: the private key file to log in with.")
    ] = None,
    jump: Annotated[
        str | None,
        typer.Option(metavar="HOST,HOST", help="add: SSH servers to go through, as ssh -J."),
    ] = None,
    fingerprint: Annotated[
        str | None,
        typer.Option(metavar="SHA256:...", help="trust: accept no other unknown key than this."),
    ] = None,
    no_connect: Annotated[
        bool, typer.Option("--no-connect", help="show: settings only, without the device.")
    ] = False,
    config: Config = None,
) -> None:
    """List, add, show, trust and remove the devices to deploy to."""
    if action is Action.LIST:
        _list(out, config)
        return
    if name is None:
        raise UsageError(
            f"targets {action}: which target?", remedy=f"edgekit targets {action} NAME"
        )
    if action is Action.ADD:
        options = {"python": python, "identity": identity, "jump": jump}
        _add(out, config, name, address, profile, workdir, options)
    elif action is Action.REMOVE:
        _remove(out, config, name)
    elif action is Action.TRUST:
        _trust(out, _resolved(name, config), fingerprint)
    else:
        _show(out, _resolved(name, config), no_connect)


def _file(config: Path | None) -> Path:
    """The file to edit: the one named, the one found here or above, else a new one here."""
    return config or find_file(Path.cwd()) or Path.cwd() / FILE_NAME


def _resolved(name: str, config: Path | None) -> Target:
    return resolve_target(name, DeviceConfig.from_args(config=config).targets)


def _list(out: Output, config: Path | None) -> None:
    from edgekit.targets.profile import load_profile

    known = list(DeviceConfig.from_args(config=config).targets.values())
    profiles = [load_profile(name) for name in profile_names()]

    def show(console: Console) -> None:
        if known:
            rows = [(t.name, t.transport, t.address or "-", t.profile or "-") for t in known]
            console.print(table(("target", "transport", "address", "profile"), rows))
        else:
            console.print(f"There is no target in {FILE_NAME}.")
        console.print()
        console.print(table(("profile", ""), [(p.name, p.description) for p in profiles]))

    document = {
        "targets": codec.to_jsonable(known),
        "profiles": [{"name": p.name, "description": p.description} for p in profiles],
    }
    out.result(document, show)


def _add(
    out: Output,
    config: Path | None,
    name: str,
    address: str | None,
    profile: str | None,
    workdir: str | None,
    options: Mapping[str, str | None],
) -> None:
    from edgekit.config_edit import add_target
    from edgekit.targets.profile import load_profile

    if address is None:
        raise UsageError(
            "targets add: what is its address?",
            remedy=f"edgekit targets add {name} USER@HOST --profile PROFILE",
        )
    if profile is not None:
        load_profile(profile)
    given = {key: value for key, value in options.items() if value is not None}
    target = replace(_addressed(name, address), profile=profile or "", options=given)
    if workdir is not None:
        target = replace(target, workdir=workdir)
    file = _file(config)
    before = file.read_bytes() if file.exists() else None
    add_target(file, target)
    try:
        DeviceConfig.from_args(config=file)  # says what is wrong with the name
    except UsageError:
        file.unlink() if before is None else write_atomic(file, before)
        raise

    def show(console: Console) -> None:
        console.print(f"{name} is in {file} now.", markup=False, soft_wrap=True)
        if target.transport == "ssh":
            console.print(
                f"Next: edgekit targets trust {spelled(target)}", markup=False, soft_wrap=True
            )

    out.result({"target": codec.to_jsonable(target), "file": str(file)}, show)


def _addressed(name: str, address: str) -> Target:
    """The target of an address, which needs no ``ssh://`` here."""
    if address == "local":
        return Target(name=name, transport="local", address="")
    if address.startswith("adb:"):
        return Target(name=name, transport="adb", address=address.removeprefix("adb:"))
    from edgekit.targets.ssh_config import parse_address

    parse_address(address)
    return Target(name=name, transport="ssh", address=address)


def _remove(out: Output, config: Path | None, name: str) -> None:
    from edgekit.config_edit import remove_target

    file = _file(config)
    remove_target(file, name)
    out.result(
        {"removed": name, "file": str(file)},
        lambda console: console.print(
            f"{name} is no longer in {file}; what is on the device stays.",
            markup=False,
            soft_wrap=True,
        ),
    )


def _trust(out: Output, target: Target, fingerprint: str | None) -> None:
    from edgekit.targets.ssh_survey import trust

    if target.transport != "ssh":
        raise UsageError(f"{target.name} is not reached by SSH: there is no host key to trust.")
    with out.progress.stage(f"Ask {target.name} for its host key"):
        found = trust(target, fingerprint)

    def show(console: Console) -> None:
        rows = [
            (item.server, item.kind, item.fingerprint, str(item.file or "known before"))
            for item in found
        ]
        console.print(table(("server", "key", "fingerprint", "in"), rows))

    document = {
        "target": target.name,
        "servers": [
            {
                "server": item.server,
                "kind": item.kind,
                "fingerprint": item.fingerprint,
                "added_to": None if item.file is None else str(item.file),
            }
            for item in found
        ],
    }
    out.result(document, show)


def _show(out: Output, target: Target, no_connect: bool) -> None:
    document: dict[str, Any] = {"target": codec.to_jsonable(target)}
    if target.transport == "ssh":
        from edgekit.targets.ssh_survey import describe

        document["route"] = describe(target)
    if not no_connect:
        from edgekit.targets.device import survey

        facts, problems = survey(target)
        document["facts"] = codec.to_jsonable(facts)
        document["misfits"] = problems

    def show(console: Console) -> None:
        for title in document:
            console.print(title, style="bold")
            items = document[title]
            for item in items if isinstance(items, list) else [items]:
                for key, value in item.items() if isinstance(item, dict) else [("", item)]:
                    console.print(f"  {key:<16} {_cell(value)}", markup=False, soft_wrap=True)

    out.result(document, show)


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    if isinstance(value, dict):
        return ", ".join(f"{key} = {one}" for key, one in value.items()) or "-"
    return "-" if value in (None, "") else str(value)
