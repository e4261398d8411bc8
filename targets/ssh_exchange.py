"""One exchange with ``agent/remote.py`` over an SSH channel: bytes there, frames back.

The device is not trusted: frames and their sum are bounded, silence ends the exchange.
"""

from __future__ import annotations

import functools
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import DeviceError, LinkLost
from edgekit.targets.answer import shortened
from edgekit.targets.runtimes import AGENT_DIR
from edgekit.targets.ssh_connect import Connection, words

if TYPE_CHECKING:
    import paramiko

GREETING = b"\0edgekit remote 1\n"
#: What a login script may print before the greeting.
MAX_NOISE = 1 << 16
MAX_FRAME = 1 << 20
#: The device shows a sign of life every 5 s.
SILENCE_S = 60.0
#: A copy without one more byte for so long is given up; signs of life are none.
STALL_S = 300.0
#: Bytes per second that a copy makes at least, its pauses aside: a device that gives a byte now and
#: then would go on for ever. GPRS, the slowest link worth sending a model over, carries some 3000.
LEAST_RATE = 1000.0
#: What sshd's usual packets of 32 KiB carry.
PACKET = 32768 - 64
#: To open a channel and start the program there.
OPEN_S = 30.0
CLOSE_S = 10.0

OnFrame = Callable[[bytes, bytes], None]


class OutOfTime(Exception):
    """The deadline of an exchange passed."""


class NotStarted(Exception):
    """The link was lost before the device was asked for anything: to ask again does no harm."""


class _Guard:
    """Closes a connection that keeps us waiting: some calls of paramiko wait for ever.

    Through a jump host, the kernel notices nothing of a link that died beyond it.
    """

    def __init__(self, connection: Connection, seconds: float) -> None:
        self._connection = connection
        self._ended = threading.Event()
        self.allow(seconds)
        threading.Thread(target=self._watch, name="edgekit-ssh-guard", daemon=True).start()

    def allow(self, seconds: float) -> None:
        """So many seconds more from now on."""
        self._limit = time.monotonic() + seconds

    def end(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(max(0.01, self._limit - time.monotonic())):
            if time.monotonic() >= self._limit:
                self._connection.close()
                return


class Exchange:
    """A started ``remote.py``.

    Args:
        connection: to the device.
        name: the target's name, for messages.
        python: the interpreter there.
        header: what to do.

    Raises:
        NotStarted: the connection is dead.
        LinkLost: it broke just now.
    """

    def __init__(
        self, connection: Connection, name: str, python: str, header: Mapping[str, Any]
    ) -> None:
        self._connection = connection
        self._name = name
        self._python = python
        self._copies = header["verb"] != "run"
        self._buffer = bytearray()
        self._greeted = False
        self._frames: deque[tuple[bytes, bytes]] = deque()
        self._heard = self._moved = time.monotonic()
        self.ended: dict[str, str] | None = None
        self._guard = _Guard(connection, OPEN_S)
        try:
            self._channel: paramiko.Channel = connection.transport.open_session(timeout=OPEN_S)
            program = _program(header)
            self._channel.exec_command(_command(python, len(program)))
        except Exception as error:
            self._guard.end()
            raise NotStarted(words(error)) from error
        self._channel.settimeout(OPEN_S)
        while program:
            program = self._send_some(program)

    def close(self) -> None:
        """Ends the exchange; what runs there is killed by ``remote.py``."""
        self._guard.allow(CLOSE_S)
        try:
            self._channel.close()
        except Exception:  # the link is dead: there is nobody to tell
            self._connection.close()
        finally:
            self._guard.end()

    def talk(self, source: Iterator[bytes], on_frame: OnFrame, deadline: float) -> dict[str, str]:
        """Sends what ``source`` gives and passes on frames until the last one, which it returns.

        ``deadline`` is a time of :func:`time.monotonic`.

        Raises:
            LinkLost: the connection broke, there was silence, or no byte of a copy moved for
                STALL_S.
            OutOfTime: the deadline passed.
            DeviceError: what answers is not ``remote.py``, or it could not do it.
        """
        chunk = next(source, b"")
        self._moved = time.monotonic()
        while True:
            while self._frames:
                kind, content = self._frames.popleft()
                if content and kind != b"A":  # what begins a copy moves nothing
                    self._moved = time.monotonic()
                on_frame(kind, content)
            if self.ended is not None:
                return self.ended
            wait = self._patience(deadline)
            if chunk:
                self._channel.settimeout(0.05)
                left = self._send_some(chunk)
                if len(left) < len(chunk):
                    self._moved = time.monotonic()
                chunk = left or next(source, b"")
                wait = 0.0
            self._receive(wait)

    def until_begun(self, deadline: float) -> dict[str, str]:
        """Waits for the first frame, which says what is there.

        Raises:
            LinkLost, OutOfTime, DeviceError: as in :meth:`talk`.
        """
        self._moved = time.monotonic()
        while not self._frames and self.ended is None:
            self._receive(self._patience(deadline))
        return _parsed(self._frames.popleft()[1]) if self._frames else {}

    def _patience(self, deadline: float) -> float:
        """Seconds to wait for the next byte."""
        now = time.monotonic()
        if now >= deadline:
            raise OutOfTime
        if now >= self._heard + SILENCE_S:
            raise self._lost(f"nothing was heard for {SILENCE_S:g} s")
        wait = min(deadline, self._heard + SILENCE_S) - now
        if self._copies:
            if now >= self._moved + STALL_S:
                raise self._lost(
                    f"the device shows signs of life, but no byte moved for {STALL_S:g} s"
                )
            wait = min(wait, self._moved + STALL_S - now)
        return wait

    def _receive(self, wait: float) -> None:
        self._channel.settimeout(wait)
        try:
            data = self._channel.recv(1 << 18)
        except TimeoutError:
            return
        except Exception as error:
            raise self._lost(words(error)) from error
        if not data:
            raise self._no_answer()
        self._heard = time.monotonic()
        self._guard.allow(SILENCE_S + CLOSE_S)
        self._buffer += data
        if not self._greeted:
            start = self._buffer.find(GREETING)
            if start < 0:
                if len(self._buffer) > MAX_NOISE:
                    raise self._foreign()
                return
            del self._buffer[: start + len(GREETING)]
            self._greeted = True
        self._take_frames()

    def _take_frames(self) -> None:
        position = 0
        with memoryview(self._buffer) as view:
            while len(view) - position >= 5 and self.ended is None:
                kind = bytes(view[position : position + 1])
                size = int.from_bytes(view[position + 1 : position + 5], "big")
                if kind not in (b"A", b"O", b"E", b"H", b"X") or size > MAX_FRAME:
                    raise self._foreign()
                if len(view) - position - 5 < size:
                    break
                content = bytes(view[position + 5 : position + 5 + size])
                position += 5 + size
                if kind == b"X":
                    self.ended = _parsed(content)
                elif kind != b"H":
                    self._frames.append((kind, content))
        del self._buffer[:position]

    def _send_some(self, chunk: bytes) -> bytes:
        """What is left of a chunk; nothing where the device takes no more."""
        try:
            sent = self._channel.send(chunk)
        except TimeoutError:  # the device's window is full
            return chunk
        except Exception:  # its last words may be here already: reading tells what happened
            sent = 0
        return chunk[sent:] if sent else b""

    def _lost(self, why: str) -> LinkLost:
        return LinkLost(f"{self._name}: the connection was lost: {why}.")

    def _foreign(self) -> DeviceError:
        return DeviceError(f"{self._name}: the device answers with something else.")

    def _no_answer(self) -> DeviceError:
        """Why the channel ended before the last frame."""
        if self._greeted or not self._connection.alive:
            return self._lost("it ended in the middle")
        self._channel.settimeout(5.0)
        try:
            said = bytes(self._buffer) + self._channel.recv_stderr(1 << 16)
        except Exception:
            said = bytes(self._buffer)
        self._channel.status_event.wait(CLOSE_S)  # may arrive after the last words
        if not said and self._channel.exit_status == -1:
            return self._lost("it ended in the middle")
        last = said.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no output"]
        if self._channel.exit_status == 127:  # the shell found no such program
            return DeviceError(
                f"{self._name}: there is no {self._python} on the device ({last[0][:200]}).",
                remedy="Install it there (Debian, Raspberry Pi OS: sudo apt-get install python3), "
                "or name a Python 3.9 or later in the target's option python.",
            )
        if "SyntaxError" in last[0]:
            return DeviceError(
                f"{self._name}: {self._python} on the device is too old: it does not understand "
                "what Python 3.9 does.",
                remedy="Install Python 3.9 or later there, or name one in the target's option "
                "python.",
            )
        return DeviceError(
            f"{self._name}: {self._python} could not be started: {shortened(last[0], 300)}",
            remedy="The device needs Python 3.9 or later; the target's option python names another "
            "interpreter. Its user needs a login shell.",
        )


@functools.cache
def _source() -> str:
    return (AGENT_DIR / "remote.py").read_text(encoding="utf-8")


def _program(header: Mapping[str, Any]) -> bytes:
    """``remote.py`` with what it shall do: texts, numbers and lists, as Python writes them."""
    return f"{_source()}\nmain(**{dict(header)!r})\n".encode()


def _command(python: str, size: int) -> str:
    """The one shell command that is ever sent: reads a program of ``size`` bytes and runs it."""
    code = f'import io;exec(io.BufferedReader(io.FileIO(0,"rb",False),1).read({size}))'
    return shlex.join(["exec", python, "-I", "-S", "-c", code])


def _parsed(content: bytes) -> dict[str, str]:
    lines = content.decode("utf-8", "replace").split("\n")
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


def longest_copy_s(size: int, pauses: int, away_s: float) -> float:
    """The most seconds that a copy may take: those of the least rate, and so many pauses, in each
    of which no byte moves and then the link is away.

    Args:
        size: bytes.
        pauses: how many of them are forgiven.
        away_s: seconds that a link may be away.
    """
    return size / LEAST_RATE + pauses * (STALL_S + away_s)


def file_chunks(path: Path, offset: int, end: int) -> Iterator[bytes]:
    """A file's bytes in packets, from one offset to another.

    Raises:
        DeviceError: it cannot be read so far.
    """
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            while offset < end:
                chunk = file.read(min(PACKET, end - offset))
                if not chunk:
                    raise DeviceError(f"{path} became shorter while it was copied.")
                offset += len(chunk)
                yield chunk
    except OSError as error:
        raise DeviceError(f"{path} could not be read: {error.strerror}.") from error


def byte_chunks(data: bytes) -> Iterator[bytes]:
    """Bytes in packets."""
    for start in range(0, len(data), PACKET):
        yield data[start : start + PACKET]


def reason(ended: Mapping[str, str]) -> str:
    """Why the device could not do it, in its own words, of a bearable length."""
    return shortened(ended.get("message", "no reason given"), 300)
