"""The transport across a network: SSH, by paramiko, without a program of ours left on the device.

Commands and copies are done there by ``agent/remote.py``, which is sent along with each; no shell
interprets anything that comes from outside, and what runs there ends with the link. One connection
serves all calls; it is opened by the first, and opened again after it was lost.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from edgekit.errors import DeviceError, LinkLost, UsageError
from edgekit.resolve import spelled
from edgekit.targets.base import MAX_OUTPUT_BYTES, Completed
from edgekit.targets.ssh_config import Hop, route
from edgekit.targets.ssh_connect import (
    Connection,
    Limits,
    checked_by_known_hosts,
    connect,
)
from edgekit.targets.ssh_exchange import (
    Exchange,
    NotStarted,
    OutOfTime,
    byte_chunks,
    file_chunks,
    longest_copy_s,
    reason,
)
from edgekit.targets.ssh_keys import KeyRing
from edgekit.types import Target

#: A copy that is cut goes on where it stopped; so often without one more byte, then it is lost.
COPY_RETRIES = 3
#: The device's own limit comes after ours, so that it is we who say what happened.
GRACE_S = 5.0


class SshTransport:
    """Runs commands on a device reached by SSH; see :class:`edgekit.targets.base.Transport`.

    ``target.options`` understood here: ``python`` (the interpreter there), ``identity``, ``jump``
    (see :mod:`edgekit.targets.ssh_config`), ``connect_timeout_s``, ``link_timeout_s`` and
    ``reconnect_s`` (how long a server may take to greet, a link to be silent, and to be away).

    Args:
        target: whose address is ``[ssh://][user@]host[:port]`` or a host of the ssh configuration.

    Raises:
        UsageError: the address, an option or the ssh configuration is wrong.
    """

    def __init__(self, target: Target) -> None:
        self._name = target.name
        self._python = target.options.get("python", "python3")
        self._limits = limits_of(target)
        self._hops: tuple[Hop, ...] = route(target)
        self._verify = checked_by_known_hosts(f"edgekit targets trust {spelled(target)}")
        self._keys = KeyRing()
        self._connection: Connection | None = None
        #: How long to wait for a device that was there before; None for one that never was.
        self._patience_s: float | None = None

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float,
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """See :meth:`edgekit.targets.base.Transport.run`."""
        output = _Output(on_line)
        header = {
            "verb": "run",
            "argv": [str(word) for word in argv],
            "stdin_bytes": len(stdin),
            "timeout_s": timeout_s + GRACE_S,
        }
        with self._exchange(header) as exchange:
            try:
                deadline = time.monotonic() + timeout_s
                ended = exchange.talk(byte_chunks(stdin), output.take, deadline)
            except OutOfTime:
                raise LinkLost(
                    f"{argv[0]} did not end within its time limit and was killed."
                ) from None
        if "failed" in ended:
            raise DeviceError(f"{argv[0]} could not be started: {reason(ended)}.")
        return output.completed(_whole(ended.get("code")))

    def put(
        self,
        local: Path,
        remote: str,
        on_bytes: Callable[[int], None] | None = None,
        *,
        keep: int = 0,
    ) -> None:
        """See :meth:`edgekit.targets.base.Transport.put`; resumes by itself."""
        try:
            size = local.stat().st_size
        except OSError as error:
            raise DeviceError(f"{local.name} could not be copied to {remote}: {error}.") from error
        progress = _Progress(on_bytes, keep)

        def copy(attempt: int, deadline: float) -> None:
            most = size if attempt else keep
            header = {"verb": "put", "path": remote, "size": size, "keep": most}
            with self._exchange(header) as exchange:
                offset = 0
                if most:
                    there = _whole(exchange.until_begun(deadline).get("size"))
                    offset = min(size, max(0, there))
                    progress.confirmed = max(progress.confirmed, offset)
                source = progress.counted(file_chunks(local, offset, size), offset)
                ended = exchange.talk(source, self._refuse_output, deadline)
            if "failed" in ended:
                raise DeviceError(f"{local.name} could not be copied to {remote}: {reason(ended)}.")

        self._resumed(copy, progress, size)
        progress.reach(size)

    def _refuse_output(self, kind: bytes, content: bytes) -> None:
        """A copy has none; taken for bytes that move, a flood would keep it alive for ever."""
        if kind != b"A":
            raise DeviceError(f"{self._name}: the device answers a copy with output.")

    def get(self, remote: str, local: Path, max_bytes: int) -> None:
        """See :meth:`edgekit.targets.base.Transport.get`; resumes by itself."""
        try:
            with open(local, "wb") as sink:
                self._fetch(remote, sink, max_bytes)
        except OSError as error:
            raise DeviceError(f"{remote} could not be fetched: {error}.") from error

    def _fetch(self, remote: str, sink: IO[bytes], max_bytes: int) -> None:
        progress = _Progress(None, 0)
        identity: str | None = None

        def take(kind: bytes, content: bytes) -> None:
            if kind != b"O":
                raise DeviceError(f"{self._name}: the device answers a copy with something else.")
            sink.write(content)
            progress.confirmed = sink.tell()
            if progress.confirmed > max_bytes:
                raise DeviceError(
                    f"{remote} on the device has more than the {max_bytes} bytes expected."
                )

        def copy(attempt: int, deadline: float) -> None:
            nonlocal identity
            offset = sink.tell()
            header = {"verb": "get", "path": remote, "offset": offset, "limit": max_bytes - offset}
            with self._exchange(header) as exchange:
                begun = exchange.until_begun(deadline).get("identity")
                if offset and begun != identity:
                    raise DeviceError(f"{remote} changed on the device while it was fetched.")
                identity = begun
                ended = exchange.talk(iter(()), take, deadline)
            if ended.get("failed") == "kind":
                raise DeviceError(f"{remote} on the device is not a regular file.")
            if "failed" in ended:
                raise DeviceError(f"{remote} could not be fetched: {reason(ended)}.")

        self._resumed(copy, progress, max_bytes)

    def close(self) -> None:
        """See :meth:`edgekit.targets.base.Transport.close`."""
        self._disconnect()
        self._keys.close()

    @contextlib.contextmanager
    def _exchange(self, header: Mapping[str, Any]) -> Iterator[Exchange]:
        exchange = self._started(header)
        try:
            yield exchange
        finally:
            exchange.close()

    def _started(self, header: Mapping[str, Any]) -> Exchange:
        """An exchange, on the connection that there is or on a new one."""
        for _ in range(2):
            connection = self._connected()
            try:
                return Exchange(connection, self._name, self._python, header)
            except NotStarted as error:
                why = str(error)
                self._disconnect()
        raise LinkLost(f"{self._name}: the connection was lost: {why}.")

    def _connected(self) -> Connection:
        """The connection; a new one where there is none or it is dead."""
        if self._connection is None or not self._connection.alive:
            self._disconnect()
            patience_s = self._patience_s
            if patience_s is not None:
                self._patience_s = 0.0  # what stayed away for so long is not waited for again
            self._connection = connect(
                self._hops, self._keys, self._limits, self._verify, patience_s=patience_s
            )
            self._patience_s = self._limits.reconnect_s
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _resumed(self, copy: Callable[[int, float], None], progress: _Progress, size: int) -> None:
        """Copies, as often as it takes while each attempt brings more; but not for ever."""
        limit_s = longest_copy_s(size, 1 + COPY_RETRIES, self._limits.reconnect_s)
        deadline = time.monotonic() + limit_s
        fruitless = 0
        for attempt in itertools.count():
            self._connected()
            before = progress.confirmed
            try:
                copy(attempt, deadline)
                return
            except OutOfTime:
                raise LinkLost(
                    f"{self._name}: {size} bytes were not copied within {limit_s:.0f} s.",
                    remedy="The link, or the device, is too slow for that; use a better link.",
                ) from None
            except LinkLost:
                fruitless = 0 if progress.confirmed > before else fruitless + 1
                if fruitless > COPY_RETRIES:
                    raise


class _Output:
    """What a command writes, bounded."""

    def __init__(self, on_line: Callable[[str], None] | None) -> None:
        self._on_line = on_line
        self._partial = bytearray()
        self._out = bytearray()
        self._err = bytearray()
        self._total = 0

    def take(self, kind: bytes, content: bytes) -> None:
        self._total += len(content)
        if self._total > MAX_OUTPUT_BYTES:
            raise DeviceError(f"A command wrote more than {MAX_OUTPUT_BYTES} bytes.")
        if kind == b"E":
            self._err += content
        elif self._on_line is None:
            self._out += content
        else:
            first, *others = content.split(b"\n")
            self._partial += first
            for rest in others:
                self._on_line(self._partial.decode("utf-8", "replace"))
                self._partial[:] = rest

    def completed(self, code: int) -> Completed:
        if self._on_line is not None and self._partial:
            self._on_line(self._partial.decode("utf-8", "replace"))
        return Completed(code, bytes(self._out), bytes(self._err))


class _Progress:
    """Counts each byte of a copy once, however often it is sent.

    ``confirmed`` is how much is known to have arrived; what was sent may still be under way.
    """

    def __init__(self, on_bytes: Callable[[int], None] | None, start: int) -> None:
        self._on_bytes = on_bytes
        self.confirmed = start
        self._reached = start

    def counted(self, chunks: Iterator[bytes], offset: int) -> Iterator[bytes]:
        for chunk in chunks:
            yield chunk
            offset += len(chunk)
            self.reach(offset)

    def reach(self, position: int) -> None:
        if position > self._reached:
            if self._on_bytes is not None:
                self._on_bytes(position - self._reached)
            self._reached = position


def _whole(text: str | None) -> int:
    """What the device calls a number; -1 where it is none."""
    return int(text) if text and re.fullmatch(r"-?\d{1,15}", text) else -1


def limits_of(target: Target) -> Limits:
    """A target's time-outs.

    Raises:
        UsageError: one is no positive number.
    """
    found = {}
    fields = ("connect_timeout_s", "connect_s"), ("link_timeout_s", "link_s")
    for option, field in (*fields, ("reconnect_s", "reconnect_s")):
        if (text := target.options.get(option)) is None:
            continue
        try:
            found[field] = float(text)
        except ValueError:
            found[field] = 0.0
        if not 0 < found[field] < 86400:
            raise UsageError(f"{target.name}: {option} = {text!r} is no number of seconds.")
    return Limits(**found)
