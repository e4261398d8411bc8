"""How long work reports on itself. The library speaks to these protocols; the CLI draws them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Stage(Protocol):
    """One step of a longer job."""

    def advance(self, n: int = 1, note: str = "") -> None:
        """Say that ``n`` more units are done; ``note`` names what was last finished."""

    def set_total(self, total: int) -> None:
        """Say how many units there are, once that is known."""


class Progress(Protocol):
    """Receives stages and log lines."""

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Stage]:
        """Open a step called ``name`` with ``total`` units (None: unknown)."""

    def log(self, text: str) -> None:
        """Take one line for the user: a decision, a warning, a reuse."""


class _QuietStage:
    def advance(self, n: int = 1, note: str = "") -> None:
        pass

    def set_total(self, total: int) -> None:
        pass


class Quiet:
    """Progress that shows nothing: the default of the Python API."""

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        yield _QuietStage()

    def log(self, text: str) -> None:
        pass
