"""Runs a function in a process of its own, so that a crash there is a typed error here.

Converters segfault, loop and eat memory. :func:`run_many` runs jobs in interpreters other than the
caller's, watches time and memory, kills the whole process group when a limit is passed or when the
caller is interrupted, and turns every way of ending into a result or a typed error. The other jobs
go on. Every job has an interpreter of its own, but for those that say that they may follow one
another in the same: importing a converter can take longer than using it.
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
from typing import IO, Any

from edgekit import errors, worker_errors

_POLL_S = 0.02
_MEMORY_POLL_S = 0.25
#: In the environment of a worker and all that it starts.
_MARK = "EDGEKIT_JOB"
#: What is found may be about to start one more process.
_KILL_ROUNDS = 5


@dataclass(frozen=True)
class Job:
    """A function call to be made in another process.

    ``entry`` is ``"package.module:function"``; it is called with ``payload`` (JSON types only) and
    must return JSON types. ``log`` receives everything that the process prints.
    ``after`` names jobs that have to succeed first; ``memory_bytes`` limits the resident memory of
    the process and its children; ``weight`` orders the queue, heaviest first.

    ``worker``, where it is not empty, allows the process to be one in which a job of the same
    ``worker`` and ``env`` has succeeded. A job that crashes there is run again in a fresh process:
    what others left behind is never held against it.
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
    worker: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a job ended: ``error`` is None on success and ``value`` what the function returned."""

    job: Job
    value: Any
    error: errors.EdgekitError | None
    seconds: float
    peak_rss_bytes: int


Told = Callable[[Job, str], object]


def _unheard(job: Job, text: str) -> None:
    pass


def run_isolated(job: Job, *, on_told: Told = _unheard) -> Any:
    """Run one job and return its value; ``on_told`` as in :func:`run_many`.

    Raises:
        WorkerCrashed: the process died or passed a limit, or the function raised a foreign error.
        EdgekitError: the function raised one; it arrives as the same class.
    """
    (outcome,) = run_many([job], max_workers=1, on_told=on_told)
    if outcome.error is not None:
        raise outcome.error
    return outcome.value


def run_many(
    jobs: Sequence[Job],
    *,
    max_workers: int,
    on_done: Callable[[Outcome], None] = lambda outcome: None,
    on_told: Told = _unheard,
) -> list[Outcome]:
    """Run jobs, at most ``max_workers`` at a time, and return their outcomes in the order given.

    A job whose predecessor failed is not started; it fails with that reason. On KeyboardInterrupt
    (or any other exception in the caller) every process group is killed before it propagates.
    ``on_told`` is given what a running job says by :func:`edgekit.telling.tell`.
    """
    waiting = sorted(jobs, key=lambda job: -job.weight)
    # All processes that there are, so that whatever interrupts us, they will be killed.
    workers: list[_Worker] = []
    done: dict[str, Outcome] = {}

    def settle(outcome: Outcome) -> None:
        done[outcome.job.name] = outcome
        on_done(outcome)

    with tempfile.TemporaryDirectory(prefix="edgekit-jobs-") as folder:

        def start(job: Job) -> None:
            worker = next((one for one in workers if not one.busy and one.suits(job)), None)
            if worker is None:
                worker = _Worker(Path(folder))
                workers.append(worker)
            worker.start(job)

        try:
            while waiting or any(worker.busy for worker in workers):
                for job in _ready(waiting, done):
                    if sum(worker.busy for worker in workers) >= max_workers:
                        break
                    waiting.remove(job)
                    start(job)
                for worker in workers:
                    if worker.busy and (text := worker.told()):
                        on_told(worker.job, text)
                finished = [worker for worker in workers if worker.busy and worker.poll()]
                for worker in finished:
                    outcome = worker.finish()
                    if outcome.error is not None or not any(map(worker.suits, waiting)):
                        worker.kill()
                        workers.remove(worker)
                    if worker.jobs > 1 and isinstance(outcome.error, errors.WorkerCrashed):
                        start(outcome.job)
                    else:
                        settle(outcome)
                for outcome in _cancelled(waiting, done):
                    waiting.remove(outcome.job)
                    settle(outcome)
                if not finished:
                    time.sleep(_POLL_S)
        finally:
            for worker in workers:
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
    """A process, which is started with its first job and can be given others after that."""

    def __init__(self, folder: Path) -> None:
        self.busy = False
        #: How many jobs it was given.
        self.jobs = 0
        self._folder = folder
        self._mark = os.urandom(12).hex()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, job: Job) -> None:
        """Have the job run; the one before, if any, has ended."""
        self.busy, self._job = True, job
        self.jobs += 1
        self._result = self._folder / f"{self._mark}-{self.jobs}.json"
        self._told, self._heard = self._result.with_suffix(".told"), ""
        self._started = self._next_memory_check = time.monotonic()
        self._peak_rss = 0
        self._stopped: errors.WorkerCrashed | None = None
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("wb") as log:
            if self._process is None:
                self._process = self._popen(log)
        request = {
            "entry": job.entry,
            "payload": job.payload,
            "log": str(job.log.absolute()),
            "result": str(self._result),
            "told": str(self._told),
            "parent": os.getpid(),
        }
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def _popen(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            # -P: a file of the user's called types.py must not shadow the standard library's.
            [sys.executable, "-P", "-X", "faulthandler", "-m", "edgekit.worker"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **self._job.env, _MARK: self._mark},
            # A group of its own: the terminal's Ctrl-C reaches us first, and one kill ends
            # the converter together with the compilers it may have started.
            start_new_session=True,
        )

    def suits(self, job: Job) -> bool:
        """Whether ``job`` may follow the last one in this process."""
        return bool(job.worker) and (job.worker, job.env) == (self._job.worker, self._job.env)

    @property
    def job(self) -> Job:
        """The job that it was given last."""
        return self._job

    def told(self) -> str:
        """What the job says that it did not say before; empty where there is nothing new."""
        try:
            text = self._told.read_text(encoding="utf-8")
        except OSError:
            return ""
        heard, self._heard = self._heard, text
        return text if text != heard else ""

    def poll(self) -> bool:
        """Look after the process; True once its job has ended."""
        assert self._process is not None
        # The answer appears by a rename when all else is done.
        if self._result.exists() or self._process.poll() is not None:
            return True
        job, now = self._job, time.monotonic()
        if now - self._started > job.timeout_s:
            self._stop(worker_errors.over_time(job.name, job.timeout_s, job.log))
        elif now >= self._next_memory_check:
            self._next_memory_check = now + _MEMORY_POLL_S
            rss = _tree_rss_bytes(self._process.pid)
            self._peak_rss = max(self._peak_rss, rss)
            if rss > job.memory_bytes:
                self._stop(worker_errors.over_memory(job.name, job.memory_bytes, job.log))
        return self._stopped is not None

    def finish(self) -> Outcome:
        """How the job ended."""
        assert self._process is not None
        job, self.busy = self._job, False
        seconds = time.monotonic() - self._started
        value: Any = None
        error: errors.EdgekitError | None = self._stopped
        if error is None and self._result.exists():
            answer = json.loads(self._result.read_text())
            value = answer.get("value")
            if "error" in answer:
                error = worker_errors.raised(job.name, answer["error"], job.log)
        elif error is None:
            error = worker_errors.died(job.name, self._process.wait(), job.log)
        return Outcome(job, value, error, seconds, self._peak_rss)

    def kill(self) -> None:
        """End the process and everything that it started."""
        if self._process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            assert self._process.stdin is not None
            # What could not be written any more is of no use to anybody.
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        _kill_marked(self._mark)

    def _stop(self, reason: errors.WorkerCrashed) -> None:
        self._stopped = reason
        self.kill()


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
