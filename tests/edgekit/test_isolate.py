"""Every way in which a worker process can end becomes a value or one typed error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from edgekit import telling
from edgekit.errors import DataError, ExportFailed, MissingExtra, WorkerCrashed
from edgekit.isolate import Job, Outcome, run_isolated, run_many
from edgekit.worker_errors import log_tail

HERE = str(Path(__file__).parent)


def job(tmp_path: Path, function: str, /, name: str = "", **changes: Any) -> Job:
    given: dict[str, Any] = {
        "name": name or function,
        "entry": f"isolate_jobs:{function}",
        "payload": {"value": 21, "pids": str(tmp_path / "pids")},
        "log": tmp_path / f"{name or function}.log",
        "timeout_s": 30.0,
        "memory_bytes": 2**30,
        "env": {"PYTHONPATH": HERE},
    }
    return Job(**{**given, **changes})


def alive(pid: int) -> bool:
    """A zombie that nobody has reaped yet does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Any, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


def test_returns_the_value_although_the_function_prints(tmp_path: Path) -> None:
    value = run_isolated(job(tmp_path, "double"))
    assert value["value"] == 42
    assert value["pid"] != os.getpid()
    assert "noise on stdout" in (tmp_path / "double.log").read_text()


def test_what_a_job_says_is_heard_while_it_works(tmp_path: Path) -> None:
    heard: list[tuple[str, str]] = []

    def on_told(which: Job, text: str) -> None:
        heard.append((which.name, text))
        (tmp_path / f"pids{text}").touch()  # or it would wait for ever

    assert run_isolated(job(tmp_path, "tells"), on_told=on_told) == "done"
    assert heard == [("tells", "one"), ("tells", "two")]
    assert "two" in (tmp_path / "tells.log").read_text()


def test_a_count_speaks_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    said: list[str] = []
    advance = telling.counted(said.append, "samples", 20)
    for _ in range(12):
        advance()
    assert said == ["samples: 5 of 20", "samples: 10 of 20"], "looking at the clock takes a second"


@pytest.mark.parametrize(
    ("function", "kind", "signal_name"),
    [
        ("segfault", "signal", "SIGSEGV"),
        ("illegal_instruction", "signal", "SIGILL"),
        ("killed", "memory", "SIGKILL"),
        ("leave", "exit", ""),
        ("memory_error", "memory", ""),
        ("raise_foreign", "exception", ""),
        ("unserialisable", "exception", ""),
    ],
)
def test_a_crash_is_typed(tmp_path: Path, function: str, kind: str, signal_name: str) -> None:
    with pytest.raises(WorkerCrashed) as caught:
        run_isolated(job(tmp_path, function))
    assert caught.value.kind == kind
    assert caught.value.signal_name == signal_name
    assert function in caught.value.message


def test_a_crash_brings_the_last_lines_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(WorkerCrashed) as caught:
        run_isolated(job(tmp_path, "segfault"))
    text = "\n".join(caught.value.log_tail)
    assert "about to read address 0" in text
    assert "isolate_jobs.py" in text, "faulthandler says where"


def test_a_crash_that_a_job_tells_itself_keeps_its_words(tmp_path: Path) -> None:
    with pytest.raises(WorkerCrashed, match=r"^cannot convert$") as caught:
        run_isolated(job(tmp_path, "raise_crash"))
    assert (caught.value.kind, caught.value.remedy) == ("exception", "leave it out")
    assert "layer7 has no kernel" in caught.value.log_tail


def test_errors_of_edgekit_arrive_as_they_were_raised(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sample 3 holds NaN") as caught:
        run_isolated(job(tmp_path, "raise_typed"))
    assert caught.value.remedy == "remove it"
    with pytest.raises(MissingExtra) as missing:
        run_isolated(job(tmp_path, "raise_missing"))
    assert missing.value.extra == "tflite"


def test_a_hang_is_stopped_with_everything_it_started(tmp_path: Path) -> None:
    with pytest.raises(WorkerCrashed, match="limit of 2 s") as caught:
        run_isolated(job(tmp_path, "hang_with_child", timeout_s=2.0))
    assert caught.value.kind == "timeout"
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert wait_until(lambda: not any(alive(pid) for pid in pids))


def test_memory_is_limited(tmp_path: Path) -> None:
    with pytest.raises(WorkerCrashed, match="limit of 300 MB") as caught:
        run_isolated(job(tmp_path, "eat", memory_bytes=300_000_000))
    assert caught.value.kind == "memory"


def test_the_others_go_on_and_outcomes_keep_their_order(tmp_path: Path) -> None:
    seen: list[str] = []

    def on_done(outcome: Outcome) -> None:
        seen.append(outcome.job.name)

    jobs = [
        job(tmp_path, "double", name="a"),
        job(tmp_path, "segfault", name="b"),
        job(tmp_path, "double", name="c"),
    ]
    outcomes = run_many(jobs, max_workers=2, on_done=on_done)
    assert [outcome.job.name for outcome in outcomes] == ["a", "b", "c"]
    assert [outcome.error is None for outcome in outcomes] == [True, False, True]
    assert sorted(seen) == ["a", "b", "c"]
    assert outcomes[0].seconds > 0


def test_what_depends_on_a_failure_is_not_started(tmp_path: Path) -> None:
    jobs = [
        job(tmp_path, "double", name="last", after=("middle",)),
        job(tmp_path, "double", name="middle", after=("first",)),
        job(tmp_path, "leave", name="first"),
    ]
    last, middle, first = run_many(jobs, max_workers=2)
    assert isinstance(first.error, WorkerCrashed)
    assert isinstance(middle.error, ExportFailed) and "first failed" in middle.error.message
    assert isinstance(last.error, ExportFailed) and "middle failed" in last.error.message
    assert not (tmp_path / "last.log").exists()


def test_dependents_start_after_what_they_need(tmp_path: Path) -> None:
    order: list[str] = []
    jobs = [
        job(tmp_path, "double", name="second", after=("first",), weight=9),
        job(tmp_path, "double", name="first", weight=1),
    ]
    run_many(jobs, max_workers=2, on_done=lambda outcome: order.append(outcome.job.name))
    assert order == ["first", "second"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_orphans_when_the_caller_is_interrupted_or_killed(
    tmp_path: Path, how: signal.Signals
) -> None:
    script = f"""
import sys
sys.path.insert(0, {HERE!r})
from pathlib import Path
from test_isolate import job
from edgekit.isolate import run_isolated
run_isolated(job(Path({str(tmp_path)!r}), "hang_with_child"))
"""
    caller = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    assert wait_until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text())
    worker, grandchild = (int(pid) for pid in (tmp_path / "pids").read_text().split())
    caller.send_signal(how)
    caller.wait(timeout=10)
    assert wait_until(lambda: not alive(worker))
    if how == signal.SIGINT:
        assert wait_until(lambda: not alive(grandchild))
    elif alive(grandchild):
        # SIGKILL gives nobody a chance to clean up below the worker, which the kernel ended.
        os.kill(grandchild, signal.SIGKILL)


def test_a_files_name_does_not_shadow_the_standard_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "types.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    assert run_isolated(job(tmp_path, "double"))["value"] == 42


def test_the_tail_of_a_log_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"\xff\xfe" * 10_000_000 + b"\nlast line\n")
    tail = log_tail(log)
    assert tail[-1] == "last line"
    assert sum(map(len, tail)) < 20_000
    assert log_tail(tmp_path / "absent") == ()
