"""``edgekit init``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli.options import Input
from edgekit.cli.output import Output
from edgekit.config import FILE_NAME, ProjectConfig
from edgekit.errors import UsageError
from edgekit.files import write_atomic
from edgekit.scaffold import look_around, render

if TYPE_CHECKING:
    from rich.console import Console

NEXT = ("edgekit doctor", "edgekit run")


def init(
    out: Output,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to write it.")] = Path(),
    model: Annotated[
        str | None,
        typer.Option(help="The MODEL, as for `edgekit quantize`; default: what the folder shows."),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="A state dict to load.")] = None,
    input: Input = None,
    calib: Annotated[str | None, typer.Option(help="Calibration samples.")] = None,
    eval: Annotated[str | None, typer.Option("--eval", help="Evaluation samples.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented edgekit.toml that runs.

    The model, its example inputs and the sample folders are filled in where the folder shows them.
    """
    path = folder / FILE_NAME
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder}.")
    if path.exists() and not force:
        raise UsageError(f"{path} exists already.", remedy="Overwrite it with --force.")
    found = look_around(folder, model)
    text = render(found, weights=weights, inputs=input, calib=calib, eval_set=eval)
    write_atomic(path, text)
    project = ProjectConfig.load(path)
    missing = [
        spec
        for spec in (project.data.calib, project.data.eval)
        if spec and ":" not in spec and not (project.root / spec).exists()
    ]

    def show(console: Console) -> None:
        console.print(f"Wrote {path} for {project.model.source}.", markup=False)
        for spec in missing:
            console.print(f"Put samples into {spec}, or correct the path.", markup=False)
        console.print(f"Next: {', then '.join(NEXT)}.", markup=False)

    document = {
        "path": str(path.absolute()),
        "model": project.model.source,
        "missing": missing,
        "next": list(NEXT),
    }
    out.result(document, show)
