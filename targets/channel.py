"""Talks to the agent on a device: puts it there by its hash, sends requests, reads JSON lines.

Only transport methods are used, so a channel is the same to this machine and across a network.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import getpass
import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from edgekit.errors import DeviceError
from edgekit.progress import Progress
from edgekit.targets.agent import agent as device_agent
from edgekit.targets.answer import MAX_ITEMS, Answer, parse_answer, shortened
from edgekit.targets.base import Transport
from edgekit.targets.runtimes import AGENT_DIR

#: Runs before the agent is there: expands the root on the device, says which agent it has, and
#: stores the one that comes on stdin if that is the one asked for.
_BOOT = """
import hashlib, json, os, sys, tempfile
os.umask(0o077)
def failed(kind, error, trace):
    if issubclass(kind, OSError): print(json.dumps({"errno": error.errno, "root": root}))
    else: sys.__excepthook__(kind, error, trace)
sys.excepthook = failed
root = os.path.abspath(os.path.expanduser(sys.argv[1]))
want, folder = sys.argv[2], os.path.join(root, "agent")
path, data = os.path.join(folder, want + ".py"), sys.stdin.buffer.read()
def good(b): return hashlib.sha256(b).hexdigest() == want
there = os.path.isfile(path) and good(open(path, "rb").read())
if data and not there:
    if not good(data): sys.exit("the agent arrived damaged")
    os.makedirs(folder, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=folder)
    try:
        with open(fd, "wb") as f:
            f.write(data); f.flush(); os.fsync(fd)
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    fd = os.open(folder, os.O_RDONLY); os.fsync(fd); os.close(fd)
    there = True
print(json.dumps({"root": root, "agent": path if there else "", "python": sys.version_info[:2]}))
"""

#: To put the agent there.
BOOT_S = 60.0
#: The longest that one request for the lock waits on the device.
_LOCK_TURN_S = 20.0
#: In all, a lock is waited for as long as for so many owners who keep it to the end.
_OWNERS = 10

#: Locks that this process holds now: what else it owns on a device was left by a lost connection.
_held_here: set[str] = set()

READ_ONLY = (
    "Make it writable (sudo mount -o remount,rw /; with an overlay, turn it off in raspi-config), "
    "or name a folder elsewhere as the target's `workdir`. A card that turned read-only by itself "
    "is failing."
)
_REMEDIES = {
    "busy": "Wait until it has ended, or try again later.",
    "measuring": "It goes on by itself; the command that started it joins it, and "
    "`edgekit probe --fetch` gets what it found.",
    "space": "Free space on the device: `edgekit gc`, or remove files of yours.",
    "hash": "Try again. If it happens again, the device's storage or memory is failing.",
    "damaged": "Run `edgekit status --verify` for details, and deploy again.",
    "lost": "The device was restarted, or another session took it over; try again.",
    "readonly": READ_ONLY,
}
#: Why edgekit's folder on the device cannot be written, and what to do.
_UNWRITABLE = {
    errno.EROFS: ("is on a read-only file system", READ_ONLY),
    errno.ENOSPC: ("is on a full disk", "Free some space there, or name a folder on another disk "
                   "as the target's `workdir`."),
    errno.EDQUOT: ("is over its user's quota", "Free some space there."),
    errno.EACCES: ("may not be written by its user", "Name a folder that the user owns as the "
                   "target's `workdir`."),
}  # fmt: skip


class AgentRefused(DeviceError):
    """The agent answered a request with an error.

    ``kind`` is the agent's own word: busy, measuring, lost, incomplete, hash, space, readonly,
    damaged, invalid, nothing or os. ``answer`` is all that it said.
    """

    def __init__(self, message: str, *, kind: str, answer: Answer) -> None:
        super().__init__(message, remedy=_REMEDIES.get(kind, ""))
        self.kind = kind
        self.answer = answer


@dataclass(frozen=True)
class Channel:
    """A device whose agent is in place.

    Attributes:
        transport: the way to it.
        name: the target's name, for messages.
        python: the interpreter that runs the agent there.
        root: the absolute path of edgekit's folder there.
        agent: the absolute path of the agent there.
        token: the lock's token, or empty where the lock is not held.
        incoming: the folder for uploads under this lock.
    """

    transport: Transport
    name: str
    python: str
    root: str
    agent: str
    token: str = ""
    incoming: str = ""

    def call(
        self,
        op: str,
        *,
        timeout_s: float = 120.0,
        on_event: Callable[[Answer], None] | None = None,
        **fields: Any,
    ) -> Answer:
        """One request to the agent.

        Args:
            op: the operation, a function ``op_...`` of the agent.
            timeout_s: wall seconds.
            on_event: receives everything but the result, as it comes.
            fields: the request's own fields.

        Raises:
            AgentRefused: the agent says why it did not do it.
            DeviceError: the answer is none.
            LinkLost: the connection broke.
        """
        ended: list[Answer] = []
        count = 0

        def line(text: str) -> None:
            nonlocal count
            count += 1
            if count > MAX_ITEMS:
                raise DeviceError(f"{self.name}: the device's answer to {op!r} has no end.")
            if ended:
                raise DeviceError(f"{self.name}: the device goes on after its answer to {op!r}.")
            event = parse_answer(text, self.name)
            if event.get("event") in ("result", "error"):
                ended.append(event)
            elif on_event is not None:
                on_event(event)

        request = json.dumps({"schema": 1, "op": op, "token": self.token, **fields})
        done = self.transport.run(
            [self.python, "-I", "-S", self.agent, self.root],
            stdin=request.encode(),
            timeout_s=timeout_s,
            on_line=line,
        )
        if not ended:
            raise DeviceError(
                f"{self.name}: the agent ended without an answer to {op!r} "
                f"(code {done.returncode}): {_last_line(done.stderr)}"
            )
        (answer,) = ended
        if answer["event"] == "error":
            message, kind = (shortened(str(answer.get(key)), 500) for key in ("message", "kind"))
            raise AgentRefused(f"{self.name}: {message}.", kind=kind, answer=answer)
        return answer

    @contextlib.contextmanager
    def locked(
        self, what: str, *, progress: Progress, wait_s: float, job: str = ""
    ) -> Iterator[Channel]:
        """Holds the device's lock; gives the channel to use meanwhile.

        Args:
            what: the operation, for those who have to wait.
            progress: told when somebody else holds the lock.
            wait_s: how long to wait for one and the same owner of the lock; while it changes hands,
                the others get on, and so will we. In all, ten times as long: a device may lie.
            job: a job that may hold the lock already, to be adopted.

        Raises:
            AgentRefused: kind ``busy`` or ``measuring``: somebody else still works with the device.
        """
        owner = {**device_agent.identity(os.getpid()), "session": secrets.token_hex(8)}
        _held_here.add(owner["session"])
        try:
            answer = self._take_lock(what, owner, job, progress, wait_s)
            held = replace(self, token=answer.text("token"), incoming=answer.path("incoming"))
            try:
                yield held
            finally:
                with contextlib.suppress(DeviceError):  # others find it stale after a while
                    held.call("unlock")
        finally:
            _held_here.discard(owner["session"])

    def _take_lock(
        self, what: str, owner: dict[str, Any], job: str, progress: Progress, wait_s: float
    ) -> Answer:
        who = f"{what} by {_user()} (process {os.getpid()})"
        ask = functools.partial(self.call, "lock", who=who, owner=owner, job=job or None)
        gone: object = None
        claims = 0
        seen: object = None
        started = time.monotonic()
        told, turn_s, deadline = False, 0.0, started + wait_s
        while True:
            try:
                return ask(wait_s=turn_s, gone=gone, timeout_s=turn_s + 60)
            except AgentRefused as refused:
                other = refused.answer.get("owner")
                if other != seen:
                    seen = other
                    deadline = min(time.monotonic() + wait_s, started + _OWNERS * wait_s)
                left = deadline - time.monotonic()
                # A device that names one dead process after the other is believed for a while.
                if (
                    refused.kind == "busy"
                    and other != gone
                    and claims < _OWNERS
                    and _was_ours(other)
                ):
                    gone, claims = other, claims + 1
                    continue
                if refused.kind not in ("busy", "measuring") or left <= 0:
                    raise
                if not told:
                    progress.log(f"{refused.message} Waiting.")
                    told = True
                turn_s = min(left, _LOCK_TURN_S)


def _was_ours(owner: Any) -> bool:
    """Whether a lock's owner was a process of this machine and is gone, or a lock of this process
    that a lost connection left behind."""
    if not isinstance(owner, dict) or owner.get("table") != device_agent.process_table():
        return False
    if not owner["table"] or not isinstance(owner.get("pid"), int):
        return False
    if owner["pid"] == os.getpid() and device_agent.alive(owner):
        return owner.get("session") not in _held_here
    return device_agent.has_ended(owner)


def open_channel(transport: Transport, *, name: str, python: str, workdir: str) -> Channel:
    """Puts the agent on the device unless it is there, and opens a channel to it.

    Raises:
        DeviceError: there is no usable Python on the device.
        LinkLost: the connection broke.
    """
    source = (AGENT_DIR / "agent.py").read_bytes()
    digest = hashlib.sha256(source).hexdigest()
    # Asking first costs one round trip and spares a slow link the file.
    for stdin in (b"", source):
        done = transport.run(
            [python, "-I", "-S", "-c", _BOOT, workdir, digest], stdin=stdin, timeout_s=BOOT_S
        )
        if done.returncode != 0 and not done.stdout:
            raise DeviceError(
                f"{name}: the agent could not be started with {python}: {_last_line(done.stderr)}",
                remedy="The device needs Python 3.9 or later and a writable work folder.",
            )
        answer = parse_answer(done.stdout.decode("utf-8", "replace"), name)
        if "errno" in answer:
            raise _unwritable(answer, name)
        version = answer.items_of("python", int)
        if tuple(version) < (3, 9):
            raise DeviceError(
                f"{name}: {python} is version {version[:3]}; the agent needs 3.9 or later.",
                remedy="Install a newer python3 on the device or name one in the target's options.",
            )
        if answer.get("agent"):
            return Channel(transport, name, python, answer.path("root"), answer.path("agent"))
    raise DeviceError(f"{name}: the agent could not be stored.")


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    return shortened(lines[-1], 500) if lines else "no output"


def _unwritable(answer: Answer, name: str) -> DeviceError:
    code = answer.number("errno")
    why, remedy = _UNWRITABLE.get(
        code, (f"cannot be written: {os.strerror(code)}", "Name another `workdir`.")
    )
    folder = shortened(answer.text("root"), 200)
    return DeviceError(f"{name}: edgekit's folder {folder} {why}.", remedy=remedy)


def _user() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # no such user in the password file, as in some containers
        return f"user {os.getuid()}@{socket.gethostname()}"
