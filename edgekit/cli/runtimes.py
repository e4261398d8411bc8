"""``edgekit runtimes``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit import codec
from edgekit.cli.options import Config, Runtimes, TargetOption, names
from edgekit.cli.output import Output, say
from edgekit.cli.tables import table
from edgekit.config import DeviceConfig
from edgekit.errors import DeviceError, UsageError
from edgekit.resolve import resolve_one

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from edgekit.targets.supply import Supply


class Action(StrEnum):
    LIST = "list"
    FETCH = "fetch"
    BUILD = "build"


def runtimes(
    out: Output,
    action: Annotated[
        Action,
        typer.Argument(
            metavar="ACTION",
            help="list: what a target needs, and whether it is here. fetch: bring it here, so that "
            "a later deploy needs no internet. build: compile ExecuTorch's runner for edgekit's "
            "own wheel.",
        ),
    ],
    target: TargetOption = None,
    runtimes: Runtimes = None,
    python: Annotated[
        list[str] | None,
        typer.Option(
            metavar="3.N",
            help="list, fetch: the Python there, without asking the device; may be repeated. "
            "Default: the device's, else its profile's.",
        ),
    ] = None,
    arch: Annotated[
        list[str] | None,
        typer.Option(metavar="NAMES", help="build: aarch64, x86_64. Default: both."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="build: where the programs go."),
    ] = None,
    config: Config = None,
) -> int:
    """List and fetch what devices need to run models, for a bench without internet.

    Fetched files are kept in ~/.cache/edgekit (or $XDG_CACHE_HOME/edgekit), which may be copied
    to another machine. The exit code is 4 where something could not be fetched or does not fit.
    """
    from edgekit.targets.runtimes import cache_dir

    if action is Action.BUILD:
        _build(out, names(arch) or ["aarch64", "x86_64"], output)
        return 0
    from edgekit.targets import supply

    chosen = supply.chosen(names(runtimes))
    device = resolve_one(target, DeviceConfig.from_args(config=config).targets)
    abis = supply.abis_of(device, names(python) or [], progress=out.progress)
    if action is Action.LIST:
        found = supply.survey(chosen, abis, cache_dir())
    else:
        found = supply.fill(chosen, abis, cache_dir(), progress=out.progress)
    out.result(
        {"target": device.name, "cache": str(cache_dir()), "runtimes": codec.to_jsonable(found)},
        lambda console: _draw(console, found),
    )
    failed = [one for one in found if one.message]
    if action is Action.FETCH and failed:
        say(f"edgekit: {', '.join(one.runtime for one in failed)} could not be provided.")
        return DeviceError.exit_code
    return 0


def _build(out: Output, archs: Sequence[str], output: Path | None) -> None:
    from edgekit.targets import supply
    from edgekit.targets.executorch_runner import COMPILERS
    from edgekit.targets.runtimes import cache_dir

    for arch in archs:
        if arch not in COMPILERS:
            raise UsageError(f"--arch: {arch!r} is none of {', '.join(COMPILERS)}.")
    built = {}
    for arch in archs:
        with out.progress.stage(f"Compile the runner for {arch}"):
            built[arch] = str(supply.build(arch, output, cache_dir(), progress=out.progress))

    def show(console: Console) -> None:
        for path in built.values():
            console.print(path, markup=False, soft_wrap=True)

    out.result({"built": built}, show)


def _draw(console: Console, found: Sequence[Supply]) -> None:
    rows = [
        (
            "ok" if one.cached and not one.message else "--",
            one.runtime,
            one.version or "-",
            one.device,
            f"{one.size_bytes / 1e6:.0f} MB" if one.size_bytes else "-",
            _state(one),
        )
        for one in found
    ]
    console.print(table(("", "runtime", "version", "for", "files", ""), rows))
    for text in dict.fromkeys(f"{o.message} {o.remedy}".strip() for o in found if o.message):
        console.print(text, markup=False, soft_wrap=True)


def _state(one: Supply) -> str:
    if one.message:
        return "see below"
    return "here" if one.cached else "to be fetched"
