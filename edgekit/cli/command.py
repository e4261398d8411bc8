"""From a command's function to its command line.

A command is a function ``COMMAND_NAME(out: Output, ...) -> int | None`` in the module of its name;
its parameters are annotated as typer wants them. Every command gets ``--json``, ``-v`` and ``-q``
here. Parsing and running are apart, so that no framework stands between a command and its errors.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import typer

from edgekit.cli.output import Output
from edgekit.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose", "-v", count=True, show_default=False, help="Log more; -vv shows tracebacks."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, errors only.")]
_COMMON = {"json": (Json, False), "verbose": (Verbose, 0), "quiet": (Quiet, False)}

# typer carries click inside in newer versions and beside it in older ones; this is its UsageError.
_PARSER_ERROR: type[Exception] = typer.BadParameter.__mro__[1]


@dataclass(frozen=True)
class Invocation:
    """A parsed command line, ready to be called."""

    output: Output
    function: Callable[..., int | None]
    arguments: dict[str, Any]

    def call(self) -> int:
        """Run the command; returns its exit code."""
        from edgekit.cli.guard import configure_logging

        configure_logging(self.output.verbosity)
        return self.function(self.output, **self.arguments) or 0


def function_of(name: str) -> Callable[..., int | None]:
    """Import the module of a command and return its function."""
    function: Callable[..., int | None] = getattr(
        importlib.import_module(f"edgekit.cli.{name}"), name
    )
    return function


def parser_of(name: str) -> Any:
    """The typer command: its ``main`` gives an Invocation, or an exit code after ``--help``."""
    function = function_of(name)

    def callback(**given: Any) -> Invocation:
        json, verbose, quiet = (given.pop(key) for key in _COMMON)
        output = Output(json=json, verbosity=-1 if quiet and not verbose else verbose)
        return Invocation(output, function, given)

    hints = get_type_hints(function, include_extras=True)
    parameters = [
        parameter.replace(annotation=hints[parameter.name], kind=parameter.KEYWORD_ONLY)
        for parameter in list(inspect.signature(function).parameters.values())[1:]
    ]
    parameters += [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for key, (kind, default) in _COMMON.items()
    ]
    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    callback.__doc__ = function.__doc__
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name, context_settings={"help_option_names": ["-h", "--help"]})(callback)
    return typer.main.get_command(app)


def parse(name: str, arguments: Sequence[str]) -> Invocation | int:
    """Parse; an int is the exit code where there is nothing to run, as after ``--help``.

    Raises:
        UsageError: the arguments are wrong.
    """
    program = f"edgekit {name}"
    try:
        parsed: Invocation | int = parser_of(name).main(
            args=list(arguments), prog_name=program, standalone_mode=False
        )
    except _PARSER_ERROR as error:
        message = error.format_message()  # type: ignore[attr-defined]
        raise UsageError(
            f"{name}: {message}", remedy=f"`{program} --help` shows how it is used."
        ) from error
    return parsed
