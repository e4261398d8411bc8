"""Progress for people: bars on a terminal, one line per finished thing in a pipe."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

from edgekit.progress import Progress, Quiet, Stage

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


def make_progress(stream: TextIO, *, quiet: bool) -> Progress:
    """The progress that fits ``stream`` (stderr)."""
    if quiet:
        return Quiet()
    return BarProgress(stream) if stream.isatty() else LineProgress(stream)


class LineProgress:
    """Plain lines, for logs: a stage's beginning, every noted step, its end with its seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        """See :meth:`edgekit.progress.Progress.stage`."""
        self.log(f"{name} ...")
        started = time.monotonic()
        yield _LineStage(self, name, total)
        self.log(f"{name}: done in {time.monotonic() - started:.1f} s")

    def log(self, text: str) -> None:
        """See :meth:`edgekit.progress.Progress.log`."""
        with suppress(OSError):  # whoever read this has gone; the work goes on
            self._stream.write(text + "\n")
            self._stream.flush()


class _LineStage:
    def __init__(self, progress: LineProgress, name: str, total: int | None) -> None:
        self._progress, self._name, self._total = progress, name, total
        self._done = 0

    def advance(self, n: int = 1, note: str = "") -> None:
        self._done += n
        if note:
            of = f" [{self._done}/{self._total}]" if self._total is not None else ""
            self._progress.log(f"{self._name}{of}: {note}")

    def set_total(self, total: int) -> None:
        self._total = total


class BarProgress:
    """Bars of the open stages, drawn with rich; log lines scroll above them."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        self._console = Console(file=stream, highlight=False, emoji=False)
        self._bars: Bars | None = None
        self._open = 0

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Stage]:
        """See :meth:`edgekit.progress.Progress.stage`."""
        bars = self._start()
        task = bars.add_task(name, total=total, note="")
        started = time.monotonic()
        finished = False
        try:
            yield _BarStage(bars, task)
            finished = True
        finally:
            bars.remove_task(task)
            self._open -= 1
            if self._open == 0:
                bars.stop()
                self._bars = None
        if finished:
            self.log(f"{name}: done in {time.monotonic() - started:.1f} s")

    def log(self, text: str) -> None:
        """See :meth:`edgekit.progress.Progress.log`."""
        self._console.print(text, markup=False)

    def _start(self) -> Bars:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )
        from rich.progress import Progress as Bars

        if self._bars is None:
            self._bars = Bars(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self._console,
                transient=True,
            )
            self._bars.start()
        self._open += 1
        return self._bars


class _BarStage:
    def __init__(self, bars: Bars, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def advance(self, n: int = 1, note: str = "") -> None:
        self._bars.advance(self._task, n)
        if note:
            self._bars.update(self._task, note=note)

    def set_total(self, total: int) -> None:
        self._bars.update(self._task, total=total)
