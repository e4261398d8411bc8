"""What the SSH transport starts on the device: one command run, or one file copied, then it ends.

    python3 -I -S -c ...    on stdin: this file and a line ``main(...)`` with what to do, and then
                            the raw bytes of the command's stdin or of the file

Answers are frames on stdout behind a line that no login script prints: a letter, the length of the
content (4 bytes, big-endian), the content.

    A  it has begun; of a file its size and identity
    O  a piece of the command's stdout, or of the file
    E  a piece of the command's stderr
    H  nothing; a sign of life
    X  how it ended; the last one

A and X hold lines ``key=value``. sshd ends no command when its connection is lost. Here the end of
stdin before the last frame means just that: the command's whole process group is killed, as it is
at the end of its time, so that nothing is left behind whatever becomes of the host.

It runs once per command on boards where each import takes milliseconds: nothing is imported that
Python itself has not loaded by then, but for ``select``.
"""

from __future__ import annotations

import os
import select
import stat
import time

TYPE_CHECKING = False  # typing takes longer to import than everything else here
if TYPE_CHECKING:
    from typing import Any, Callable

GREETING = b"\0edgekit remote 1\n"
HEARTBEAT_S = 5.0
DRAIN_S = 0.5  # for the output of children that outlive the command
STALL_S = 300.0  # without a byte to or from the host, a copy is given up
NO_PIDFD_S = 0.1  # how often to look whether a command ended, on kernels before 5.3
PIECE = 1 << 16
SIGKILL, SIGPIPE, SIGXFSZ = 9, 13, 25  # the same on all architectures of Linux but MIPS


class Lost(Exception):
    """The host is gone, or it would not wait any longer."""


class Link:
    """The two ends of the channel to the host, unbuffered; all waiting ends at ``deadline``."""

    def __init__(self, seconds: float) -> None:
        os.write(1, GREETING)
        os.set_blocking(1, False)
        self.last = time.monotonic()
        self.poll = select.poll()
        self.poll.register(0, select.POLLIN)
        self.allow(seconds)

    def allow(self, seconds: float) -> None:
        self.deadline = time.monotonic() + seconds

    def frame(self, kind: bytes, content: bytes = b"") -> None:
        data = memoryview(kind + len(content).to_bytes(4, "big") + content)
        while data:
            try:
                data = data[os.write(1, data) :]
            except BlockingIOError:
                out = select.poll()
                out.register(1, select.POLLOUT)
                self.look(out, HEARTBEAT_S)
        self.last = time.monotonic()

    def tell(self, kind: bytes, **content: object) -> None:
        lines = ["%s=%s" % (key, str(value).replace("\n", " ")) for key, value in content.items()]
        self.frame(kind, "\n".join(lines).encode("utf-8", "replace"))

    def look(self, poll: select.poll, seconds: float) -> dict[int, int]:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise Lost
        return dict(poll.poll(max(0.0, min(left, seconds)) * 1000 + 1))

    def wait(self, seconds: float = HEARTBEAT_S) -> dict[int, int]:
        """Waits for one of the registered descriptors, with a sign of life now and then."""
        due = self.last + HEARTBEAT_S - time.monotonic()
        ready = self.look(self.poll, min(due, seconds))
        if time.monotonic() - self.last >= HEARTBEAT_S:
            self.frame(b"H")
        return ready

    def receive(self, limit: int) -> bytes:
        """Bytes from the host; there must be some, or the end."""
        data = os.read(0, limit)
        if not data:
            raise Lost
        return data


class Command:
    """A process in a session of its own, with pipes to its three streams."""

    def __init__(self, argv: list[str]) -> None:
        (inner, self.stdin), (self.stdout, out), (self.stderr, err) = [os.pipe() for _ in range(3)]
        try:
            self.pid = os.posix_spawnp(
                argv[0],
                argv,
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, inner, 0),
                    (os.POSIX_SPAWN_DUP2, out, 1),
                    (os.POSIX_SPAWN_DUP2, err, 2),
                ],
                setsid=True,
                setsigdef=[SIGPIPE, SIGXFSZ],  # Python ignores them; a command should not
            )
        finally:
            for descriptor in (inner, out, err):
                os.close(descriptor)
        os.set_blocking(self.stdin, False)
        try:
            self.handle = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            self.handle = -1

    def ended(self) -> bool:
        """Whether it ended, without reaping it: its number stays ours for killpg."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def close_stdin(self) -> None:
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    def feed(self, pending: bytes) -> bytes:
        try:
            return pending[os.write(self.stdin, pending) :]
        except BlockingIOError:
            return pending
        except BrokenPipeError:  # the command does not read everything: its right
            return b""

    def end(self) -> int:
        """Kills what is left of its group; returns its exit code, or minus its signal."""
        try:  # noqa: SIM105
            os.killpg(self.pid, SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        status = os.waitpid(self.pid, 0)[1]
        return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def run(link: Link, argv: list[str], stdin_bytes: int, timeout_s: float) -> None:
    """Runs a command; its process group is dead when this returns, however it does."""
    link.allow(timeout_s)
    try:
        command = Command(argv)
    except OSError as error:
        link.tell(b"X", failed="start", message=error)
        return
    try:
        relay(link, command, stdin_bytes)
    except BaseException:
        command.end()
        raise
    link.tell(b"X", code=command.end())


def relay(link: Link, command: Command, left: int) -> None:
    """Passes stdin, stdout and stderr on until the command has ended and its output is read."""
    kinds = {command.stdout: b"O", command.stderr: b"E"}
    pending, ended_at = b"", None
    for descriptor in (*kinds, command.handle):
        if descriptor >= 0:
            link.poll.register(descriptor, select.POLLIN)
    if not left:
        command.close_stdin()
    while kinds or ended_at is None:
        if ended_at is None and command.ended():
            ended_at = time.monotonic()
            if command.handle >= 0:
                link.poll.unregister(command.handle)
        # Of an ended command only what is there already: a child that left the group may hold the
        # pipes for ever.
        if ended_at is not None and (not kinds or time.monotonic() - ended_at > DRAIN_S):
            return
        # While the command does not take its stdin, the host's bytes wait; the host's end is seen
        # all the same, because a hang-up is always reported.
        link.poll.register(0, select.POLLIN if left and not pending else 0)
        looking = ended_at is not None or command.handle < 0
        ready = link.wait(NO_PIDFD_S if looking else HEARTBEAT_S)
        if ready.get(0, 0) & select.POLLIN:
            pending = link.receive(min(left, PIECE))
            left -= len(pending)
            link.poll.register(command.stdin, select.POLLOUT)
        elif 0 in ready:
            raise Lost
        if command.stdin in ready:
            pending = command.feed(pending)
            if not pending:
                link.poll.unregister(command.stdin)
                if not left:
                    command.close_stdin()
        for descriptor in [d for d in kinds if d in ready]:
            piece = os.read(descriptor, PIECE)
            if piece:
                link.frame(kinds[descriptor], piece)
            else:
                link.poll.unregister(descriptor)
                del kinds[descriptor]


def put(link: Link, path: str, size: int, keep: int) -> None:
    """Writes a file; of what is there already, it keeps at most so many bytes and goes on there."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK, 0o666)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError("not a regular file")
        there = min(found.st_size, keep)
        os.ftruncate(descriptor, there)
        os.lseek(descriptor, there, os.SEEK_SET)
        link.tell(b"A", size=there)
        while there < size:
            if 0 not in link.wait():
                continue
            link.allow(STALL_S)
            data = memoryview(link.receive(min(4 * PIECE, size - there)))
            there += len(data)
            while data:
                data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)
    link.tell(b"X", code=0)


def get(link: Link, path: str, offset: int, limit: int) -> None:
    """Reads a regular file from an offset on, at most so many bytes and one more."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a FIFO must not hang
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            link.tell(b"X", failed="kind", message="not a regular file")
            return
        identity = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
        link.tell(b"A", identity=identity)
        os.lseek(descriptor, offset, os.SEEK_SET)
        left = limit + 1
        while left > 0:
            link.allow(STALL_S)
            piece = os.read(descriptor, min(4 * PIECE, left))
            if not piece:
                break
            link.frame(b"O", piece)
            left -= len(piece)
    finally:
        os.close(descriptor)
    link.tell(b"X", code=0)


VERBS: dict[str, Callable[..., None]] = {"run": run, "put": put, "get": get}


def main(verb: str, **arguments: Any) -> None:
    try:
        link = Link(STALL_S)
        try:
            VERBS[verb](link, **arguments)
        except BrokenPipeError:
            raise Lost from None
        except OSError as error:
            link.tell(b"X", failed="os", message=error.strerror or error)
    except (Lost, BrokenPipeError):
        os._exit(1)
