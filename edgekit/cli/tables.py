"""Text for people on stdout: a console of the right width and plain tables."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.table import Table

_PIPE_WIDTH = 100


@contextmanager
def console_for(stream: TextIO) -> Iterator[tuple[Console, Callable[[], str]]]:
    """A console that collects text meant for ``stream``, and a function that returns the text.

    Colours only on a terminal (and not with NO_COLOR); 100 columns in a pipe.
    """
    terminal = stream.isatty()
    buffer = io.StringIO()
    width = shutil.get_terminal_size((_PIPE_WIDTH, 25)).columns if terminal else _PIPE_WIDTH
    console = Console(
        file=buffer, force_terminal=terminal, width=width, highlight=False, emoji=False
    )

    def flush() -> str:
        text = buffer.getvalue()
        # rich pads cells; in a file or a pipe that is noise.
        return text if terminal else "".join(f"{line.rstrip()}\n" for line in text.splitlines())

    yield console, flush


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()
) -> Table:
    """A table without vertical lines; ``right`` names the right-aligned columns.

    Cells are plain text: nothing in them is taken for markup.
    """
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        grid.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    return grid
