"""How a runner's end is judged: the recorded ends of real failures."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgekit.errors import RunnerFailed
from edgekit.targets.runner import MAX_REPORT_BYTES, RunnerExit, judge, parse_report

GOOD: dict[str, Any] = {
    "schema": 1, "runner": "onnx", "runner_version": "1", "runtime_version": "1.32.0",
    "threads": 1, "load_ns": 5, "first_ns": 6, "latency_ns": [7, 8], "warmup_runs": 2,
    "peak_rss_bytes": 1000, "samples": 1,
    "inputs": [{"name": "x", "dtype": "float32", "shape": [1, 3]}],
    "outputs": [{"name": "y", "dtype": "float32", "shape": [1, 2]}],
}  # fmt: skip


def _failure(ended: RunnerExit) -> RunnerFailed:
    with pytest.raises(RunnerFailed) as caught:
        judge(ended, what="tiny (2 threads)")
    assert caught.value.message.startswith("tiny (2 threads): the runner")
    return caught.value


@pytest.mark.parametrize(
    ("ended", "kind", "signal", "text"),
    [
        (RunnerExit(-4, "", "boom"), "signal", "SIGILL", "instruction that this CPU does not have"),
        (RunnerExit(-11, "", "a\nb"), "signal", "SIGSEGV", "crashed with SIGSEGV"),
        (RunnerExit(-9, "", ""), "signal", "SIGKILL", "killed from outside"),
        (RunnerExit(-9, "", "", oom_kill=True), "memory", "SIGKILL", "memory ran out"),
        (RunnerExit(-9, "", "x", timed_out=True), "timeout", "", "time limit"),
        (
            RunnerExit(-6, "", "terminate called after throwing an instance of 'std::bad_alloc'"),
            "memory", "SIGABRT", "ran out of memory",
        ),
        (RunnerExit(70, "", "Traceback\nMemoryError"), "memory", "", "ran out of memory"),
        (RunnerExit(65, "", "run_onnx: bad magic"), "model", "", "bad magic"),
        (RunnerExit(66, "", "short input"), "usage", "", "short input"),
        (
            RunnerExit(127, "", "./r: error while loading shared libraries: libexecutorch.so: "
                       "cannot open shared object file: No such file or directory"),
            "runtime", "", "libexecutorch.so: cannot open shared object file",
        ),
        (
            RunnerExit(1, "", "./r: libc.so.6: version `GLIBC_2.34' not found (required by r)"),
            "runtime", "", "version `GLIBC_2.34' not found",
        ),
        (
            RunnerExit(69, "", "run_onnx: cannot load the runtime: x.so: undefined symbol: _Zfoo"),
            "runtime", "", "undefined symbol: _Zfoo",
        ),
        (RunnerExit(69, "", "No module named 'torch'"), "runtime", "", "No module named 'torch'"),
        (RunnerExit(3, "", ""), "exit", "", "exit code 3: it left no message"),
        (RunnerExit(-64, "", ""), "signal", "SIGRTMAX", "SIGRTMAX"),
    ],
)  # fmt: skip
def test_every_end_has_its_kind(ended: RunnerExit, kind: str, signal: str, text: str) -> None:
    error = _failure(ended)
    assert (error.kind, error.signal_name) == (kind, signal)
    assert text in error.message
    if kind in ("memory", "timeout", "runtime") or signal == "SIGILL":
        assert error.remedy


def test_the_log_keeps_its_last_lines_bounded() -> None:
    error = _failure(RunnerExit(70, "", "\n".join(f"line {i} " + "x" * 900 for i in range(99))))
    assert len(error.log_tail) == 20 and error.log_tail[-1].startswith("line 98")
    assert max(map(len, error.log_tail)) == 500


def test_a_good_report_is_read() -> None:
    report = judge(RunnerExit(0, json.dumps(GOOD), "noise"), what="x")
    assert report.latency_ns == (7, 8) and report.outputs[0].shape == (1, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2}, {"latency_ns": None}, {"latency_ns": [1.5]}, {"latency_ns": [-1]},
        {"latency_ns": [True]}, {"latency_ns": [1] * 100_001}, {"load_ns": 2**64},
        {"runner": 5}, {"runner": "x" * 300}, {"inputs": [{"name": "x"}]}, {"outputs": "y"},
        {"inputs": [{"name": "x", "dtype": "object", "shape": [1]}]},
        {"inputs": [{"name": "x", "dtype": "int8", "shape": [1] * 40}]},
        {"peak_rss_bytes": "many"},
    ],
)  # fmt: skip
def test_a_report_is_not_trusted(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        parse_report(json.dumps({**GOOD, **change}))


@pytest.mark.parametrize("text", ["", "{}", "[1]", "nonsense", "[" * 100_000, "1" * 5000])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_report(text)
    assert _failure(RunnerExit(0, text, "")).kind == "exit"


def test_an_endless_report_is_refused() -> None:
    with pytest.raises(ValueError, match="more than"):
        parse_report(json.dumps(GOOD) + " " * MAX_REPORT_BYTES)
