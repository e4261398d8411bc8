"""The transport contract: how edgekit reaches a device. One file per transport implements it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

#: No command that edgekit runs answers with more; what does is not trusted and ends in DeviceError.
MAX_OUTPUT_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended. ``returncode`` is negative for a signal, as in :mod:`subprocess`."""

    returncode: int
    stdout: bytes
    stderr: bytes


class Transport(Protocol):
    """A way to run commands on a device and to copy files; nothing in it knows about models.

    Every method raises :class:`edgekit.errors.LinkLost` when the connection breaks or the time is
    over, after which the same object may be used again: a transport reconnects by itself. A class
    of the registry is called with its :class:`edgekit.types.Target`.
    """

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float,
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """Runs one command to its end; no shell interprets ``argv``.

        Args:
            argv: program and arguments, passed unchanged.
            stdin: what the command reads from its standard input.
            timeout_s: wall seconds after which the command and its children are killed.
            on_line: called with every line of stdout (without its newline) as it arrives;
                ``Completed.stdout`` is then empty.

        Raises:
            LinkLost: the connection broke or the time is over.
            DeviceError: there is no such program, or it wrote more than MAX_OUTPUT_BYTES.
        """
        ...

    def put(
        self,
        local: Path,
        remote: str,
        on_bytes: Callable[[int], None] | None = None,
        *,
        keep: int = 0,
    ) -> None:
        """Copies a file to the absolute path ``remote``, whose folder exists, replacing it.

        A copy that is cut may leave a part of the file; durability is the caller's business.

        Args:
            on_bytes: receives the number of bytes sent since its last call.
            keep: so many bytes at the beginning are known to be there already, and are not sent.
        """
        ...

    def get(self, remote: str, local: Path, max_bytes: int) -> None:
        """Copies a regular file from the device; more than ``max_bytes`` raises DeviceError."""
        ...

    def close(self) -> None:
        """Ends the connection. Safe to call twice."""
        ...
