"""The lock of a device: one works with it at a time, and none stays locked out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from edgekit.targets.agent import agent
from edgekit.targets.answer import Answer
from edgekit.targets.channel import AgentRefused, Channel
from edgekit.targets.device import Device, connect
from tests.targets.conftest import local_target
from tests.targets.test_agent_faults import blob_of, locked
from tests.targets.transport_contract import ROOT


def test_two_at_once_is_refused_and_waiting_works(device: Device, tmp_path: Path) -> None:
    with connect(local_target(tmp_path / "root")) as other:
        with locked(device):
            started = time.monotonic()
            with (
                pytest.raises(AgentRefused, match=r"test by .* working with this device") as caught,
                locked(other, wait_s=0.6),
            ):
                pass
            assert caught.value.kind == "busy" and time.monotonic() - started > 0.5
        with locked(other):
            pass


def test_a_lock_that_changes_hands_is_waited_for(device: Device, tmp_path: Path) -> None:
    """Among many, chance may let one of them wait for long: that is no reason to give up."""

    def wait() -> bool:
        with connect(local_target(tmp_path / "root")) as other, locked(other, wait_s=1.0):
            return True

    with ThreadPoolExecutor(1) as threads, ExitStack() as stack:
        with locked(device):
            waiting = threads.submit(wait)
            for _ in range(4):
                holder = stack.enter_context(subprocess.Popen(["sleep", "60"]))
                stack.callback(holder.kill)
                _rewrite_lock(device, owner=agent.identity(holder.pid))
                time.sleep(0.6)
            assert not waiting.done()
        assert waiting.result(timeout=30)


def test_a_device_that_names_another_owner_each_time_is_given_up(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lies(*_: object, **__: object) -> Answer:
        time.sleep(0.01)
        owner = {"table": "elsewhere", "pid": time.monotonic_ns(), "start": "1"}
        answer = Answer({"owner": owner}, "lying")
        raise AgentRefused("Somebody works here.", kind="busy", answer=answer)

    monkeypatch.setattr(Channel, "call", lies)
    started = time.monotonic()
    with pytest.raises(AgentRefused), locked(device, wait_s=0.1):
        pass
    assert 0.9 < time.monotonic() - started < 5


def test_a_device_that_names_one_dead_process_after_the_other_is_given_up(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    asked = 0

    def lies(*_: object, **__: object) -> Answer:
        nonlocal asked
        asked += 1
        assert asked < 1000
        owner = {"table": agent.process_table(), "pid": ended.pid, "start": str(asked)}
        answer = Answer({"owner": owner}, "lying")
        raise AgentRefused("Somebody works here.", kind="busy", answer=answer)

    monkeypatch.setattr(Channel, "call", lies)
    with pytest.raises(AgentRefused), locked(device, wait_s=0):
        pass


def _rewrite_lock(device: Device, **changes: Any) -> None:
    with agent.exclusive(agent.Root(device.channel.root)) as lock:
        lock.write({**lock.content, **changes})


def _free(device: Device) -> bool:
    try:
        device.channel.call("lock", who="me", owner=agent.identity(os.getpid()))
    except AgentRefused as refused:
        assert refused.kind in ("busy", "measuring")
        return False
    return True


@pytest.mark.parametrize(
    ("changes", "free"),
    [
        ({}, False),
        ({"boot": "another-boot"}, True),
        ({"owner": {"table": "elsewhere", "pid": 1, "start": "1"}}, False),
        ({"owner": {"table": "elsewhere", "pid": 1, "start": "1"}, "expires": 0}, True),
        ({"expires": 0}, False),  # its owner lives, here: no guessing by time
        ({"token": ""}, True),
    ],
)
def test_when_a_lock_is_stale(device: Device, changes: dict[str, Any], free: bool) -> None:
    owner = agent.identity(os.getpid())
    device.channel.call("lock", who="me", owner=owner)
    _rewrite_lock(device, **changes)
    assert _free(device) is free


def test_a_lock_of_a_dead_process_here_is_stale_and_a_living_worker_keeps_it(
    device: Device,
) -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        device.channel.call("lock", who="me", owner=agent.identity(sleeper.pid))
        assert not _free(device)
        worker = agent.identity(sleeper.pid)
        _rewrite_lock(device, owner=None, expires=0, worker=worker)
        assert not _free(device)
        _rewrite_lock(device, worker={**worker, "start": "1"})  # its number, another process
        assert _free(device)
    finally:
        sleeper.kill()
        sleeper.wait()


#: Prints what an ordinary user finds out about owners where /proc hides other users' processes.
_HIDDEN = """
import json, os, subprocess, sys, time
from edgekit.targets.agent import agent
from edgekit.targets.channel import _was_ours
given = json.load(sys.stdin)
locks = [(agent.Root("/"), os.open(path, os.O_RDONLY)) for path in given["locks"]]
agent.identity(os.getpid())  # what it needs of Python is read before this user may not any more
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
assert not os.path.exists("/proc/1")
child = subprocess.Popen(["sleep", "60"])
while not agent.identity(child.pid)["start"]:  # hidden as this process is, until it is another
    time.sleep(0.01)
given["owners"].append(agent.identity(child.pid))
found = [_was_ours(owner) for owner in given["owners"]]
child.kill()
os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
found.append(_was_ours(given["owners"][-1]))
child.wait()
found.append(_was_ours(given["owners"][-1]))
print(json.dumps([found, [agent.Lock(*lock).owned() for lock in locks]]))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="to hide processes from another user needs root")
def test_a_process_that_proc_hides_is_not_taken_for_gone(device: Device, tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    with subprocess.Popen(["sleep", "60"]) as living:
        owners = [agent.identity(living.pid), {**agent.identity(living.pid), "pid": ended.pid}]
        locks: list[Path] = []
        for owner, leased in (*((owner, True) for owner in owners), (owners[0], False)):
            device.channel.call("lock", who="me", owner=owner)
            _rewrite_lock(device, **({} if leased else {"expires": 0}))
            locks.append(tmp_path / f"lock-{len(locks)}")
            locks[-1].write_bytes(Path(device.channel.root, "lock").read_bytes())
            _rewrite_lock(device, token="")
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", 'mount -t proc -o hidepid=2 proc /proc && exec "$@"',
             "sh", sys.executable, "-c", _HIDDEN],
            input=json.dumps({"owners": owners, "locks": [str(path) for path in locks]}),
            capture_output=True, text=True, cwd=ROOT, check=False,
        )  # fmt: skip
        living.kill()
    assert done.returncode == 0, done.stderr
    was_ours, owned = json.loads(done.stdout)
    assert was_ours == [False, True, False, True, True]
    assert owned == [True, False, False], "what is not seen is given its time"


def test_garbage_in_the_lock_is_no_lock(device: Device) -> None:
    Path(device.channel.root, "lock").write_bytes(b"\0\0\0garbage")
    assert _free(device)


def test_a_lost_lock_stops_its_former_owner(device: Device, tmp_path: Path) -> None:
    blob = blob_of(tmp_path, b"data")
    with locked(device) as held:
        _rewrite_lock(device, boot="another-boot")
        with locked(device) as other:
            with pytest.raises(AgentRefused, match="no longer holds") as caught:
                held.call("commit", blobs=[blob.sha256])
            assert caught.value.kind == "lost"
            other.call("gc")
