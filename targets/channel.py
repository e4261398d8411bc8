"""Talks to the agent on a device: puts it there by its hash, sends requests, reads JSON lines.

Only transport methods are used, so a channel is the same to this machine and across a network.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from edgekit.errors import DeviceError
from edgekit.progress import Progress
from edgekit.targets.agent import agent as device_agent
from edgekit.targets.base import Transport
from edgekit.targets.runtimes import AGENT_DIR

#: Runs before the agent is there: expands the root on the device, says which agent it has, and
#: stores the one that comes on stdin if that is the one asked for.
_BOOT = """
import hashlib, json, os, sys, tempfile
os.umask(0o077)
root = os.path.abspath(os.path.expanduser(sys.argv[1]))
want, folder = sys.argv[2], os.path.join(root, "agent")
path, data = os.path.join(folder, want + ".py"), sys.stdin.buffer.read()
def good(b): return hashlib.sha256(b).hexdigest() == want
there = os.path.isfile(path) and good(open(path, "rb").read())
if data and not there:
    if not good(data): sys.exit("the agent arrived damaged")
    os.makedirs(folder, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=folder)
    with open(fd, "wb") as f:
        f.write(data); f.flush(); os.fsync(fd)
    os.replace(temporary, path)
    fd = os.open(folder, os.O_RDONLY); os.fsync(fd); os.close(fd)
    there = True
print(json.dumps({"root": root, "agent": path if there else "", "python": sys.version_info[:2]}))
"""

_REMEDIES = {
    "busy": "Wait until it has ended, or try again later.",
    "space": "Free space on the device: `edgekit gc`, or remove files of yours.",
    "hash": "Try again. If it happens again, the device's storage or memory is failing.",
    "damaged": "Run `edgekit status --verify` for details, and deploy again.",
    "lost": "Another session took the device over; try again.",
}


class AgentRefused(DeviceError):
    """The agent answered a request with an error.

    ``kind`` is the agent's own word: busy, lost, incomplete, hash, space, damaged, invalid,
    nothing or os.
    """

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message, remedy=_REMEDIES.get(kind, ""))
        self.kind = kind


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
        on_event: Callable[[dict[str, Any]], None] | None = None,
        **fields: Any,
    ) -> dict[str, Any]:
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
        ended: list[dict[str, Any]] = []

        def line(text: str) -> None:
            event = _parsed(text, self.name)
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
            last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no output"]
            raise DeviceError(
                f"{self.name}: the agent ended without an answer to {op!r} "
                f"(code {done.returncode}): {last[0]}"
            )
        (answer,) = ended[-1:]
        if answer["event"] == "error":
            raise AgentRefused(
                f"{self.name}: {answer.get('message')}.", kind=str(answer.get("kind"))
            )
        return answer

    @contextlib.contextmanager
    def locked(
        self, what: str, *, seconds: float, progress: Progress, wait_s: float, job: str = ""
    ) -> Iterator[Channel]:
        """Holds the device's lock; gives the channel to use meanwhile.

        Args:
            what: the operation, for those who have to wait.
            seconds: how long the lock may stand without a sign of life; every step renews it.
            progress: told when somebody else holds the lock.
            wait_s: how long to wait for the lock.
            job: a job that may hold the lock already, to be adopted.

        Raises:
            AgentRefused: kind ``busy``: somebody else still works with the device.
        """
        who = f"{what} by {_user()} (process {os.getpid()})"
        owner = device_agent.identity(os.getpid())
        lock = functools.partial(
            self.call, "lock", who=who, owner=owner, seconds=seconds, job=job or None
        )
        deadline, told = time.monotonic() + wait_s, False
        while True:
            try:
                answer = lock()
                break
            except AgentRefused as refused:
                if refused.kind != "busy" or time.monotonic() >= deadline:
                    raise
                if not told:
                    progress.log(f"{refused.message} Waiting.")
                    told = True
                time.sleep(0.5)
        held = replace(self, token=str(answer["token"]), incoming=str(answer["incoming"]))
        try:
            yield held
        finally:
            with contextlib.suppress(DeviceError):  # it runs out by itself
                held.call("unlock")


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
            [python, "-I", "-S", "-c", _BOOT, workdir, digest], stdin=stdin, timeout_s=60
        )
        if done.returncode != 0:
            last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no output"]
            raise DeviceError(
                f"{name}: the agent could not be started with {python}: {last[0]}",
                remedy="The device needs Python 3.9 or later and a writable work folder.",
            )
        answer = _parsed(done.stdout.decode("utf-8", "replace"), name)
        version = answer.get("python")
        if not isinstance(version, list) or tuple(version) < (3, 9):
            raise DeviceError(
                f"{name}: {python} is version {version}; the agent needs 3.9 or later.",
                remedy="Install a newer python3 on the device or name one in the target's options.",
            )
        if answer.get("agent"):
            return Channel(transport, name, python, str(answer["root"]), str(answer["agent"]))
    raise DeviceError(f"{name}: the agent could not be stored.")


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        event = None
    if not isinstance(event, dict):
        raise DeviceError(f"{name}: the device answered with something else: {text[:200]!r}")
    return event


def _user() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # no such user in the password file, as in some containers
        return f"user {os.getuid()}@{socket.gethostname()}"
