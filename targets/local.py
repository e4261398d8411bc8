"""The transport to this very machine: the same contract as a device across a network."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from edgekit.errors import DeviceError, LinkLost
from edgekit.targets.base import MAX_OUTPUT_BYTES, Completed
from edgekit.types import Target

CHUNK = 1 << 20
#: A child that left the process group may keep the pipes open; after the command itself has ended,
#: wait this long for more output and then go on without it.
DRAIN_S = 0.5


class LocalTransport:
    """Runs commands as child processes, each in a process group of its own.

    Args:
        target: as every transport takes it; this machine needs nothing of it.
    """

    def __init__(self, target: Target | None = None) -> None:
        self._target = target

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout_s: float,
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """See :meth:`edgekit.targets.base.Transport.run`."""
        with _started(argv) as process:
            return _Exchange(process, stdin, on_line).until(time.monotonic() + timeout_s, argv[0])

    def put(
        self,
        local: Path,
        remote: str,
        on_bytes: Callable[[int], None] | None = None,
        *,
        keep: int = 0,
    ) -> None:
        """See :meth:`edgekit.targets.base.Transport.put`."""
        try:
            with open(local, "rb") as source, open(remote, "r+b" if keep else "wb") as sink:
                sink.truncate(keep)
                source.seek(keep)
                sink.seek(keep)
                while chunk := source.read(CHUNK):
                    sink.write(chunk)
                    if on_bytes is not None:
                        on_bytes(len(chunk))
        except OSError as error:
            raise DeviceError(f"{local.name} could not be copied to {remote}: {error}.") from error

    def get(self, remote: str, local: Path, max_bytes: int) -> None:
        """See :meth:`edgekit.targets.base.Transport.get`."""
        try:
            # O_NONBLOCK: opening a FIFO must not hang; it is refused below.
            descriptor = os.open(remote, os.O_RDONLY | os.O_NONBLOCK)
            with open(descriptor, "rb") as source, open(local, "wb") as sink:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise DeviceError(f"{remote} on the device is not a regular file.")
                left = max_bytes
                while chunk := source.read(min(CHUNK, left + 1)):
                    left -= len(chunk)
                    if left < 0:
                        raise DeviceError(
                            f"{remote} on the device has more than the {max_bytes} bytes expected."
                        )
                    sink.write(chunk)
        except OSError as error:
            raise DeviceError(f"{remote} could not be fetched: {error}.") from error

    def close(self) -> None:
        """Nothing stays open between calls."""


@contextlib.contextmanager
def _started(argv: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    """Starts a command; however the block ends, nothing of its process group is left running."""
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
    except OSError as error:
        raise DeviceError(f"{argv[0]} could not be started: {error}.") from error
    try:
        yield process
    finally:
        # Also after a normal end: the group's number cannot be reused before wait() has returned.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class _Exchange:
    """Feeds stdin and collects stdout and stderr of one process without threads."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        stdin: bytes,
        on_line: Callable[[str], None] | None,
    ) -> None:
        assert process.stdin is not None and process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._on_line = on_line
        self._unsent = memoryview(stdin)
        self._partial = bytearray()
        self._out: IO[bytes] = process.stdout
        self._buffers = {process.stdout: bytearray(), process.stderr: bytearray()}
        self._total = 0
        self._selector = selectors.DefaultSelector()
        for pipe in self._buffers:
            self._selector.register(pipe, selectors.EVENT_READ)
        if stdin:
            os.set_blocking(process.stdin.fileno(), False)
            self._selector.register(process.stdin, selectors.EVENT_WRITE)
        else:
            process.stdin.close()

    def until(self, deadline: float, name: str) -> Completed:
        with self._selector:
            ended_at: float | None = None
            while self._reading():
                now = time.monotonic()
                if now >= deadline:
                    raise LinkLost(f"{name} did not end within its time limit and was killed.")
                if ended_at is None and _has_ended(self._process):
                    ended_at = now
                if ended_at is not None and now - ended_at > DRAIN_S:
                    break
                for key, _ in self._selector.select(min(deadline - now, 0.1)):
                    self._serve(key.fileobj)
        while not _has_ended(self._process):
            if time.monotonic() >= deadline:
                raise LinkLost(f"{name} did not end within its time limit and was killed.")
            time.sleep(0.005)
        if self._on_line is not None and self._partial:
            self._on_line(self._partial.decode("utf-8", "replace"))
        out, err = (bytes(buffer) for buffer in self._buffers.values())
        return Completed(_exit_status(self._process), out, err)

    def _reading(self) -> bool:
        return any(key.fileobj in self._buffers for key in self._selector.get_map().values())

    def _serve(self, pipe: object) -> None:
        if pipe is self._process.stdin:
            self._feed()
            return
        assert pipe is self._process.stdout or pipe is self._process.stderr
        stream: IO[bytes] = pipe  # type: ignore[assignment]
        chunk = os.read(stream.fileno(), 1 << 16)
        if not chunk:
            self._selector.unregister(stream)
            return
        self._total += len(chunk)
        if self._total > MAX_OUTPUT_BYTES:
            raise DeviceError(f"A command wrote more than {MAX_OUTPUT_BYTES} bytes.")
        if stream is self._out and self._on_line is not None:
            self._partial += chunk
            *lines, rest = self._partial.split(b"\n")
            self._partial = rest
            for line in lines:
                self._on_line(line.decode("utf-8", "replace"))
        else:
            self._buffers[stream] += chunk

    def _feed(self) -> None:
        assert self._process.stdin is not None
        try:
            sent = os.write(self._process.stdin.fileno(), self._unsent[: 1 << 16])
        except BlockingIOError:
            return
        except BrokenPipeError:  # the command ended without reading everything: its right
            sent = len(self._unsent)
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._selector.unregister(self._process.stdin)
            self._process.stdin.close()


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process ended, without reaping it: its number stays ours for killpg."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _exit_status(process: subprocess.Popen[bytes]) -> int:
    """Exit code, or minus the signal, of an ended process that is not reaped yet."""
    info = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert info is not None
    return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
