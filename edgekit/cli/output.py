"""Where a command's words go: its result to stdout, everything else to stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from edgekit.errors import EdgekitError
from edgekit.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console


class Output:
    """The streams and wishes of one invocation.

    Args:
        json: print one JSON document on stdout instead of text.
        verbosity: -1 quiet, 0 normal, 1 with log messages, 2 with tracebacks too.
    """

    def __init__(self, *, json: bool, verbosity: int) -> None:
        self.json = json
        self.verbosity = verbosity
        self._stdout: TextIO = sys.stdout
        self._progress: Progress | None = None

    def claim_stdout(self) -> None:
        """With ``json``: keep stdout for the document; what else prints there goes to stderr."""
        if not self.json:
            return
        if sys.stdout is sys.__stdout__:
            self._stdout.flush()
            self._stdout = os.fdopen(os.dup(1), "w", encoding="utf-8")
            os.dup2(2, 1)
        sys.stdout = sys.stderr

    def release_stdout(self) -> None:
        """Undo :meth:`claim_stdout`."""
        if self.json and sys.stdout is sys.stderr:
            sys.stdout = self._stdout

    @property
    def progress(self) -> Progress:
        """Bars on a terminal, lines elsewhere, nothing with ``-q``; always on stderr."""
        if self._progress is None:
            from edgekit.cli.progress import make_progress

            self._progress = make_progress(sys.stderr, quiet=self.verbosity < 0)
        return self._progress

    def result(self, document: Mapping[str, Any], show: Callable[[Console], None]) -> None:
        """Print the result: the document as JSON, or what ``show`` draws for people."""
        if self.json:
            self._write(json.dumps(document, indent=2, allow_nan=False, ensure_ascii=False) + "\n")
            return
        from edgekit.cli.tables import console_for

        with console_for(self._stdout) as (console, flush):
            show(console)
            self._write(flush())

    def error(self, error: EdgekitError) -> None:
        """Print an error: what failed and why, the log's end, and what to do next."""
        if self.json:
            self._write(json.dumps(error_document(error), indent=2) + "\n")
        say(f"edgekit: {error.message or type(error).__name__}")
        for line in getattr(error, "log_tail", ()):
            say(f"  | {line}")
        if error.remedy:
            say(f"  -> {error.remedy}")

    def _write(self, text: str) -> None:
        try:
            self._stdout.write(text)
            self._stdout.flush()
        except BrokenPipeError:
            # The reader has seen enough (`| head`); the work is done all the same. Python would
            # complain again when it flushes at exit.
            _silence(self._stdout)


def error_document(error: EdgekitError) -> dict[str, Any]:
    """What ``--json`` prints instead of a result."""
    return {
        "error": {
            "kind": type(error).__name__,
            "message": error.message,
            "remedy": error.remedy,
            "exit_code": error.exit_code,
            "log_tail": list(getattr(error, "log_tail", ())),
        }
    }


def say(text: str) -> None:
    """One line or more to stderr, which may be gone."""
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:
        _silence(sys.stderr)


def _silence(stream: TextIO) -> None:
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
