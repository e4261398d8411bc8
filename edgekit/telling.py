"""What a worker says of its work while it goes on: the last line only, for whoever looks.

It goes through a file that :mod:`edgekit.isolate` reads: stdout and stderr are the job's log, where
converters print what they like.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

#: Seconds between two lines of a count.
EVERY_S = 5.0

_path = ""


def listen(path: str) -> None:
    """Have what is said from now on written to ``path``; empty: nowhere."""
    global _path
    _path = path


def tell(text: str) -> None:
    """Say what is being done, in a few words; also into the log. Never fails."""
    print(text, flush=True)  # noqa: T201 - the job's log
    if not _path:
        return
    part = _path + ".part"
    try:
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, _path)
    except OSError:
        pass  # a full disk is for the work itself to find


def counted(
    say: Callable[[str], object], what: str, total: int | None = None
) -> Callable[[], None]:
    """A function to be called after each of ``total`` things; every few seconds it says how many
    are done."""
    done, last = 0, time.monotonic()

    def advance() -> None:
        nonlocal done, last
        done += 1
        if time.monotonic() - last >= EVERY_S:
            last = time.monotonic()
            say(f"{what}: {done} of {total}" if total is not None else f"{what}: {done}")

    return advance
