"""Runs one command and turns every way of ending into an exit code and a message.

Exit codes are those of :mod:`edgekit.errors`, 2 for wrong usage, 1 for a bug, 130 for Ctrl-C,
SIGTERM and SIGHUP. The signals arrive as KeyboardInterrupt, so that clean-up is by ``finally``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from edgekit.cli.output import Output, say
from edgekit.errors import EdgekitError, UsageError
from edgekit.suggest import did_you_mean

INTERRUPTED = 130


class _Interrupted(EdgekitError):
    exit_code = INTERRUPTED


def run(name: str, arguments: Sequence[str], *, last: bool = False) -> int:
    """Run the command ``name``; returns the exit code.

    ``last`` says that the process ends with it: once interrupted, it is not interrupted again on
    its way out, which would end it by the signal instead of with its exit code.
    """
    from edgekit.cli import COMMANDS

    # Until the options are parsed, these are what errors go by.
    early = Output(json="--json" in arguments, verbosity=2 if "-vv" in arguments else 0)
    if name not in COMMANDS:
        early.error(_unknown(name, COMMANDS))
        return UsageError.exit_code
    with _signals_as_exceptions(last):
        return _guarded(name, arguments, early)


def _guarded(name: str, arguments: Sequence[str], output: Output) -> int:
    try:
        from edgekit.cli import command

        invocation = command.parse(name, arguments)
        if isinstance(invocation, int):
            return invocation
        output = invocation.output
        output.claim_stdout()
        try:
            return invocation.call()
        finally:
            output.release_stdout()
    except EdgekitError as error:
        return _report(error, output)
    except KeyboardInterrupt:
        return _report(_Interrupted("Interrupted; nothing half-done was left behind."), output)
    except OSError as error:
        return _report(_system_error(name, error), output)
    except Exception as error:
        return _report(_bug(name, error), output)


def _report(error: EdgekitError, output: Output) -> int:
    if output.verbosity >= 2:
        import traceback

        say(traceback.format_exc().rstrip())
    output.error(error)
    return error.exit_code


def _bug(name: str, error: Exception) -> EdgekitError:
    return EdgekitError(
        f"This is a bug in edgekit: {name} failed with {type(error).__name__}: {error}",
        remedy=f"`edgekit {name} -vv ...` shows the traceback; please report it with that.",
    )


def _system_error(name: str, error: OSError) -> EdgekitError:
    """A full disk, a folder without write permission: neither a bug nor wrong usage."""
    if error.filename is None and error.errno is None:
        return _bug(name, error)
    where = f" ({error.filename})" if error.filename else ""
    return EdgekitError(f"{name}: {error.strerror or error}{where}.")


def _unknown(name: str, known: dict[str, str]) -> UsageError:
    if name.startswith("-"):
        return UsageError(f"There is no option {name}.", remedy="See `edgekit --help`.")
    guess = did_you_mean(name, known)
    return UsageError(
        f"There is no command {name!r}.", remedy=guess or f"Commands: {', '.join(known)}."
    )


@contextmanager
def _signals_as_exceptions(last: bool) -> Iterator[None]:
    """SIGTERM and SIGHUP interrupt like Ctrl-C. During clean-up a second signal is held off; a
    third ends the process at once."""
    received = 0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received += 1
        if received == 1:
            raise KeyboardInterrupt
        if received > 2:
            os._exit(INTERRUPTED)
        say("edgekit: cleaning up; once more ends it at once and may leave something behind.")

    before = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # A signal that the parent has us ignore (nohup, a shell's background job) stays so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handle)
    except ValueError:
        pass  # not the main thread: embedded in something that has its own handlers
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if last and received else handler)


def configure_logging(verbosity: int) -> None:
    """Library log messages to stderr: warnings, with -v information, with -vv everything."""
    import logging

    level = {0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    logging.basicConfig(
        level=logging.ERROR if verbosity < 0 else level,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
        force=True,
    )
