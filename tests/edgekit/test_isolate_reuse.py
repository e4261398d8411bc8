"""Jobs that may follow one another in one process: they do, and never at each other's cost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import DataError, WorkerCrashed
from edgekit.isolate import Job, Outcome, run_many

HERE = str(Path(__file__).parent)
MODULE = Path(__file__).stem

_done_before: list[str] = []


def note(payload: dict[str, Any]) -> dict[str, Any]:
    sys.stdout.write(f"this is {payload['name']}\n")
    _done_before.append(payload["name"])
    return {"pid": os.getpid(), "done": list(_done_before)}


def crash_if_used(payload: dict[str, Any]) -> dict[str, Any]:
    if _done_before:
        os.abort()
    return note(payload)


def crash(payload: dict[str, Any]) -> None:
    os.abort()


def fail(payload: dict[str, Any]) -> None:
    with open(payload["calls"], "a") as calls:
        calls.write("x")
    raise DataError("sample 3 holds NaN", remedy="remove it")


def read_stdin(payload: dict[str, Any]) -> int:
    child = [sys.executable, "-c", "import sys; print(len(sys.stdin.read()))"]
    return int(subprocess.run(child, stdout=subprocess.PIPE, check=True).stdout)


def job(folder: Path, name: str, function: str = "note", **changes: Any) -> Job:
    given: dict[str, Any] = {
        "name": name,
        "entry": f"{MODULE}:{function}",
        "payload": {"name": name, "calls": str(folder / "calls")},
        "log": folder / f"{name}.log",
        "timeout_s": 30.0,
        "memory_bytes": 2**30,
        "env": {"PYTHONPATH": HERE},
        "worker": "same",
    }
    return Job(**{**given, **changes})


def run(*jobs: Job, max_workers: int = 1) -> list[Outcome]:
    return run_many(jobs, max_workers=max_workers)


def pids(*outcomes: Outcome) -> list[int]:
    assert [outcome.error for outcome in outcomes] == [None] * len(outcomes)
    return [outcome.value["pid"] for outcome in outcomes]


def test_jobs_of_one_worker_share_a_process_and_keep_their_own_logs(tmp_path: Path) -> None:
    one, other = run(job(tmp_path, "one"), job(tmp_path, "other"))
    assert len(set(pids(one, other))) == 1
    assert other.value["done"] == ["one", "other"]
    assert (tmp_path / "one.log").read_text() == "this is one\n"
    assert (tmp_path / "other.log").read_text() == "this is other\n"


@pytest.mark.parametrize(
    "changes", [{"worker": "another"}, {"worker": ""}, {"env": {"PYTHONPATH": HERE, "A": "1"}}]
)
def test_others_get_a_process_of_their_own(tmp_path: Path, changes: dict[str, Any]) -> None:
    one, other = run(job(tmp_path, "one"), job(tmp_path, "other", **changes))
    assert len(set(pids(one, other))) == 2
    assert other.value["done"] == ["other"]


def test_without_a_worker_nothing_is_shared(tmp_path: Path) -> None:
    outcomes = run(job(tmp_path, "one", worker=""), job(tmp_path, "other", worker=""))
    assert len(set(pids(*outcomes))) == 2


def test_a_process_waits_for_a_job_that_depends_on_another(tmp_path: Path) -> None:
    early = job(tmp_path, "early")
    between = job(tmp_path, "between", worker="", after=("early",))
    late = job(tmp_path, "late", after=("between",))
    first, second, third = run(early, between, late, max_workers=2)
    assert pids(first) == pids(third) != pids(second)


def test_a_crash_in_a_used_process_is_tried_again_in_a_fresh_one(tmp_path: Path) -> None:
    one, other, last = run(
        job(tmp_path, "one"), job(tmp_path, "other", "crash_if_used"), job(tmp_path, "last")
    )
    assert len(set(pids(one, other))) == 2
    assert other.value["done"] == ["other"]
    assert last.value["done"] == ["other", "last"]


def test_a_job_that_crashes_alone_too_fails_and_the_others_go_on(tmp_path: Path) -> None:
    one, bad, last = run(job(tmp_path, "one"), job(tmp_path, "bad", "crash"), job(tmp_path, "last"))
    assert isinstance(bad.error, WorkerCrashed) and bad.error.signal_name == "SIGABRT"
    assert last.value["done"] == ["last"], "nothing follows a crash in its process"
    assert one.error is None


def test_an_error_of_edgekit_is_final(tmp_path: Path) -> None:
    _, bad, last = run(job(tmp_path, "one"), job(tmp_path, "bad", "fail"), job(tmp_path, "last"))
    assert isinstance(bad.error, DataError) and bad.error.remedy == "remove it"
    assert (tmp_path / "calls").read_text() == "x"
    assert last.value["done"] == ["last"]


def test_children_of_a_job_cannot_read_the_requests(tmp_path: Path) -> None:
    first, second = run(job(tmp_path, "one", "read_stdin"), job(tmp_path, "other"))
    assert first.value == 0
    assert second.error is None


def test_no_process_is_left(tmp_path: Path) -> None:
    found = pids(*run(job(tmp_path, "one"), job(tmp_path, "other"), job(tmp_path, "c", worker="")))
    time.sleep(0.05)
    for pid in found:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_an_interrupt_ends_idle_processes_too(tmp_path: Path) -> None:
    seen: list[int] = []

    def on_done(outcome: Outcome) -> None:
        seen.append(outcome.value["pid"])
        if len(seen) == 2:
            raise KeyboardInterrupt

    early = job(tmp_path, "early")
    between = job(tmp_path, "between", worker="", after=("early",))
    late = job(tmp_path, "late", after=("between",))
    with pytest.raises(KeyboardInterrupt):
        run_many([early, between, late], max_workers=2, on_done=on_done)
    for pid in seen:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
