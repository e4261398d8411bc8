"""Runs a command and says what it and everything that it starts took: time, processor, memory."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SAMPLE_S = 0.2
_LOG_LINES = 15


class CommandFailed(Exception):
    """A command ended with another code than 0; the message has the end of its output."""


@dataclass(frozen=True)
class Spent:
    """What a command took, from its start to its end.

    ``cpu_s`` is user and system time of all its processes. ``tree_bytes`` is the largest sum of
    their resident sets that was seen, looking every :data:`SAMPLE_S` (what processes share counts
    for each); ``process_bytes`` is the largest single one, seen the same way. (The kernel's own
    maximum is no use: it starts at what the process had that started the command.)
    """

    wall_s: float
    cpu_s: float
    tree_bytes: int
    process_bytes: int


def watch(
    command: Sequence[str], *, cwd: Path, log: Path, env: Mapping[str, str] | None = None
) -> Spent:
    """Run a command to its end, with its output in ``log`` and nothing on its stdin.

    Raises:
        CommandFailed: it ended with another code than 0.
    """
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    with _ended(process), _sampled(process.pid) as sampled:
        # Popen.wait() would throw away what the kernel has counted.
        _, status, used = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        raise CommandFailed(
            "\n".join([f"{' '.join(command)} ended with code {process.returncode}:", *lines])
        )
    cpu_s = used.ru_utime + used.ru_stime
    return Spent(wall_s, cpu_s, sampled.tree_bytes, sampled.process_bytes)


@dataclass
class _Sampled:
    tree_bytes: int = 0
    process_bytes: int = 0
    over: threading.Event = field(default_factory=threading.Event)


@contextmanager
def _sampled(pid: int) -> Iterator[_Sampled]:
    sampled = _Sampled()

    def sample() -> None:
        while not sampled.over.wait(SAMPLE_S):
            sizes = _resident_bytes(pid)
            sampled.tree_bytes = max(sampled.tree_bytes, sum(sizes))
            sampled.process_bytes = max(sampled.process_bytes, *sizes, 0)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield sampled
    finally:
        sampled.over.set()
        thread.join()


def _resident_bytes(pid: int) -> list[int]:
    sizes = []
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                sizes.append(process.memory_info().rss)
    return sizes


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Whatever ends the block, the process and its descendants do not outlive it."""
    try:
        yield
    except BaseException:
        with suppress(psutil.Error):
            root = psutil.Process(process.pid)
            for one in (*root.children(recursive=True), root):
                with suppress(psutil.Error):
                    one.kill()
        process.wait()
        raise
