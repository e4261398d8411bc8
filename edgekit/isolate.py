"""Runs a function in a process of its own, so that a crash there is a typed error here.

Converters segfault, loop and eat memory. :func:`run_many` starts one fresh interpreter per job,
watches time and memory, kills the whole process group when a limit is passed or when the caller is
interrupted, and turns every way of ending into a result or a typed error. The other jobs go on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekit import errors

_POLL_S = 0.02
_MEMORY_POLL_S = 0.25
_LOG_TAIL_LINES = 12
_LOG_TAIL_BYTES = 16_384
#: In the environment of a worker and all that it starts.
_MARK = "EDGEKIT_JOB"
#: What is found may be about to start one more process.
_KILL_ROUNDS = 5


@dataclass(frozen=True)
class Job:
    """A function call to be made in a fresh process.

    ``entry`` is ``"package.module:function"``; it is called with ``payload`` (JSON types only) and
    must return JSON types. ``log`` receives everything that the process prints.
    ``after`` names jobs that have to succeed first; ``memory_bytes`` limits the resident memory of
    the process and its children; ``weight`` orders the queue, heaviest first.
    """

    name: str
    entry: str
    payload: Mapping[str, Any]
    log: Path
    timeout_s: float
    memory_bytes: int
    env: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """How a job ended: ``error`` is None on success and ``value`` what the function returned."""

    job: Job
    value: Any
    error: errors.EdgekitError | None
    seconds: float
    peak_rss_bytes: int


def run_isolated(job: Job) -> Any:
    """Run one job and return its value.

    Raises:
        WorkerCrashed: the process died or passed a limit, or the function raised a foreign error.
        EdgekitError: the function raised one; it arrives as the same class.
    """
    (outcome,) = run_many([job], max_workers=1)
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


def run_many(
    jobs: Sequence[Job],
    *,
    max_workers: int,
    on_done: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Run jobs, at most ``max_workers`` at a time, and return their outcomes in the order given.

    A job whose predecessor failed is not started; it fails with that reason. On KeyboardInterrupt
    (or any other exception in the caller) every process group is killed before it propagates.
    """
    waiting = sorted(jobs, key=lambda job: -job.weight)
    running: list[_Worker] = []
    done: dict[str, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="edgekit-jobs-") as folder:
        try:
            while waiting or running:
                for job in _ready(waiting, done):
                    if len(running) >= max_workers:
                        break
                    waiting.remove(job)
                    worker = _Worker(job, Path(folder))
                    # In the list before it starts: whatever interrupts us, it will be killed.
                    running.append(worker)
                    worker.start()
                finished = [worker for worker in running if worker.poll()]
                for outcome in [worker.outcome() for worker in finished]:
                    done[outcome.job.name] = outcome
                    on_done(outcome)
                running = [worker for worker in running if worker not in finished]
                for outcome in _cancelled(waiting, done):
                    waiting.remove(outcome.job)
                    done[outcome.job.name] = outcome
                    on_done(outcome)
                if running and not finished:
                    time.sleep(_POLL_S)
        finally:
            for worker in running:
                worker.kill()
    return [done[job.name] for job in jobs]


def _ready(waiting: Sequence[Job], done: Mapping[str, Outcome]) -> list[Job]:
    return [
        job
        for job in waiting
        if all(name in done and done[name].error is None for name in job.after)
    ]


def _cancelled(waiting: Sequence[Job], done: Mapping[str, Outcome]) -> Iterator[Outcome]:
    for job in list(waiting):
        failed = [name for name in job.after if name in done and done[name].error is not None]
        if failed:
            cause = done[failed[0]].error
            reason = f"not started: {failed[0]} failed ({cause})"
            yield Outcome(job, None, errors.ExportFailed(reason), 0.0, 0)


class _Worker:
    """A running job."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job = job
        self._result = folder / f"{len(list(folder.iterdir()))}-{os.urandom(4).hex()}.json"
        self._mark = os.urandom(12).hex()
        self._process: subprocess.Popen[bytes] | None = None
        self._started = time.monotonic()
        self._next_memory_check = self._started
        self._peak_rss = 0
        self._stopped_for = ""

    def start(self) -> None:
        job = self.job
        request = {
            "entry": job.entry,
            "payload": job.payload,
            "result": str(self._result),
            "parent": os.getpid(),
        }
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("wb") as log:
            self._process = subprocess.Popen(
                # -P: a file of the user's called types.py must not shadow the standard library's.
                [sys.executable, "-P", "-X", "faulthandler", "-m", "edgekit.worker"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **job.env, _MARK: self._mark},
                # A group of its own: the terminal's Ctrl-C reaches us first, and one kill ends
                # the converter together with the compilers it may have started.
                start_new_session=True,
            )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode())
            self._process.stdin.close()

    def poll(self) -> bool:
        """Look after the process; True once it has ended."""
        assert self._process is not None
        if self._process.poll() is not None:
            # Its children, if any, must not outlive it.
            self.kill()
            return True
        now = time.monotonic()
        if now - self._started > self.job.timeout_s:
            self._stop("timeout")
        elif now >= self._next_memory_check:
            self._next_memory_check = now + _MEMORY_POLL_S
            rss = _tree_rss_bytes(self._process.pid)
            self._peak_rss = max(self._peak_rss, rss)
            if rss > self.job.memory_bytes:
                self._stop("memory")
        return self._process.poll() is not None

    def kill(self) -> None:
        """End the process and everything that it started."""
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        _kill_marked(self._mark)

    def _stop(self, reason: str) -> None:
        self._stopped_for = reason
        self.kill()

    def outcome(self) -> Outcome:
        seconds = time.monotonic() - self._started
        value: Any = None
        error: errors.EdgekitError | None = None
        answer = self._read_result()
        if answer is None:
            error = self._crash()
        elif "error" in answer:
            error = self._raised(answer["error"])
        else:
            value = answer["value"]
        return Outcome(self.job, value, error, seconds, self._peak_rss)

    def _read_result(self) -> dict[str, Any] | None:
        if self._stopped_for or not self._result.exists():
            return None
        answer = json.loads(self._result.read_text())
        assert isinstance(answer, dict)
        return answer

    def _raised(self, error: Mapping[str, Any]) -> errors.EdgekitError:
        known = getattr(errors, str(error["class"]), None)
        if known is errors.MissingExtra:
            return errors.MissingExtra(error["package"], error["extra"])
        if (
            isinstance(known, type)
            and issubclass(known, errors.EdgekitError)
            and known not in (errors.WorkerCrashed, errors.RunnerFailed)
        ):
            return known(error["message"], remedy=error["remedy"])
        kind = "memory" if error["class"] == "MemoryError" else "exception"
        message = f"{self.job.name}: {error['class']}: {error['message']}"
        return errors.WorkerCrashed(message, kind=kind, log_tail=log_tail(self.job.log))

    def _crash(self) -> errors.WorkerCrashed:
        assert self._process is not None
        name, job, tail = self.job.name, self.job, log_tail(self.job.log)
        if self._stopped_for == "timeout":
            return errors.WorkerCrashed(
                f"{name} was stopped after its limit of {job.timeout_s:g} s.",
                kind="timeout",
                log_tail=tail,
                remedy="Raise quantize.timeout_s, or leave this runtime out.",
            )
        if self._stopped_for == "memory":
            return errors.WorkerCrashed(
                f"{name} was stopped above its limit of {job.memory_bytes / 1e6:.0f} MB.",
                kind="memory",
                log_tail=tail,
                remedy="Raise quantize.memory_mb, or leave this runtime out.",
            )
        code = self._process.returncode
        if code < 0:
            signal_name = signal.Signals(-code).name
            out_of_memory = signal_name == "SIGKILL"
            why = " (most likely the kernel's out-of-memory killer)" if out_of_memory else ""
            return errors.WorkerCrashed(
                f"{name} died of {signal_name}{why}.",
                kind="memory" if out_of_memory else "signal",
                signal_name=signal_name,
                log_tail=tail,
                remedy="The log shows where. The other candidates are not affected.",
            )
        return errors.WorkerCrashed(
            f"{name} ended with exit code {code} and no result.", kind="exit", log_tail=tail
        )


def log_tail(path: Path, lines: int = _LOG_TAIL_LINES) -> tuple[str, ...]:
    """The last lines of a log that may be large or hold arbitrary bytes."""
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - _LOG_TAIL_BYTES))
            text = log.read().decode("utf-8", "replace")
    except OSError:
        return ()
    return tuple(line for line in text.splitlines() if line.strip())[-lines:]


def _tree_rss_bytes(pid: int) -> int:
    import psutil

    try:
        process = psutil.Process(pid)
        members = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0
    total = 0
    for member in members:
        with suppress(psutil.Error):
            total += member.memory_info().rss
    return total


def _kill_marked(mark: str) -> None:
    """Kill what a worker has left in other process groups, such as the runner that it measures.

    Looking for children would not do: when their parent is dead, they are somebody else's.
    """
    import psutil

    for _ in range(_KILL_ROUNDS):
        found = False
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(_MARK) == mark:
                    process.kill()
                    found = True
        if not found:
            return
