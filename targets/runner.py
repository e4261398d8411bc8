"""The host's side of the runner contract: build its arguments, judge how it ended, read its JSON.

``agent/runner_core.py`` documents the contract itself. Everything here is pure, so it serves runs
on this machine (:mod:`edgekit.targets.measure`) and on devices (:mod:`edgekit.targets.probe`).
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from edgekit.codec import MAX_INTEGER
from edgekit.errors import RunnerFailed
from edgekit.targets.answer import printable
from edgekit.types import BYTES_PER_ELEMENT

#: One latency takes at most 13 digits and two separators; MAX_RUNS of them fit with room to spare.
MAX_REPORT_BYTES = 4 * 2**20
MAX_RUNS = 100_000
LOG_LINES = 20

_EXIT_KINDS = {64: "usage", 65: "model", 66: "usage", 69: "runtime", 127: "runtime"}
_OUT_OF_MEMORY = re.compile(
    r"\bMemoryError\b|std::bad_alloc|cannot allocate memory|out of memory"
    r"|MemoryAllocationFailed|failed to allocate"
    # The loader's words; with a reason behind them it is not memory that was refused.
    r"|failed to map segment from shared object(?!: )",
    re.IGNORECASE,
)
_MISSING_SYMBOL = re.compile(
    r"undefined symbol: \S+|version `[^']+' not found|[^\s:]+: cannot open shared object file"
)
_REMEDIES = {
    "SIGILL": "This build uses instructions that the CPU lacks; use another version or runtime.",
    "memory": "The device has too little memory for this; try a smaller model or another runtime.",
    "timeout": "Raise the time limit, or leave this candidate out.",
    "runtime": "Run `edgekit doctor --target ...`: the runtime itself does not load there.",
}


#: What to do about a runtime that its loader refuses, by what the loader says.
_LOADER_REMEDIES = (
    (re.compile(r"lib(stdc\+\+|gcc_s|gomp)\.so"), "Install it there: sudo apt-get install "
     "libstdc++6 libgcc-s1 libgomp1."),
    (re.compile(r"version `(GLIBC|GLIBCXX|CXXABI)"), "The device's system is older than this build "
     "needs: update it, or use another runtime."),
    (re.compile(r"undefined symbol"), "A library that it finds there has another version than it "
     "was built with: `edgekit status --verify`, then deploy again."),
    (re.compile(r"cannot open shared object"), "Install the library there, or deploy again: "
     "`edgekit status --verify` says whether a file of the runtime is gone."),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunnerArguments:
    """One run of a runner. Paths are those of the machine that it runs on."""

    model: str
    threads: int
    samples: int
    inputs: tuple[str, ...] = ()
    specs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    warmup_s: float = 0.0
    budget_s: float = 0.0
    min_runs: int = 10
    max_runs: int = 10_000

    def argv(self) -> list[str]:
        """The command line that follows the runner's own command."""
        argv = ["--model", self.model]
        for name, paths in (("--input", self.inputs), ("--output", self.outputs)):
            for path in paths:
                argv += [name, path]
        return argv + self.flags()

    def flags(self) -> list[str]:
        """The part without paths."""
        numbers = {
            "--threads": self.threads,
            "--samples": self.samples,
            "--warmup-s": self.warmup_s,
            "--budget-s": self.budget_s,
            "--min-runs": self.min_runs,
            "--max-runs": self.max_runs,
        }
        flags = []
        for name, number in numbers.items():
            flags += [name, str(number)]
        for value in self.specs:
            flags += ["--spec", value]
        return flags


def spec(dtype: str, shape: Sequence[int]) -> str:
    """One ``--spec`` value, as in ``float32:1x3x224x224``."""
    return f"{dtype}:{'x'.join(str(size) for size in shape)}"


@dataclass(frozen=True, slots=True)
class RunnerExit:
    """How a runner's process ended, as seen by whoever started it.

    ``returncode`` is negative for a signal. ``oom_kill`` says that the kernel's out-of-memory
    killer struck during the run; ``stderr`` may be only the end of what was written.
    """

    returncode: int
    stdout: str
    stderr: str
    timed_out: bool = False
    oom_kill: bool = False


@dataclass(frozen=True, slots=True)
class TensorReport:
    """An input or output as the runner saw it, batch dimension included."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RunnerReport:
    """The runner's JSON, checked. Times in nanoseconds; ``latency_ns`` is raw, in order."""

    runner: str
    runner_version: str
    runtime_version: str
    threads: int
    load_ns: int
    first_ns: int
    latency_ns: tuple[int, ...]
    warmup_runs: int
    peak_rss_bytes: int
    samples: int
    inputs: tuple[TensorReport, ...]
    outputs: tuple[TensorReport, ...]


def judge(ended: RunnerExit, *, what: str) -> RunnerReport:
    """The report of a run that ended well.

    Args:
        what: the candidate, as messages name it.

    Raises:
        RunnerFailed: it crashed, ran out of time or memory, or did not keep the contract.
    """
    if ended.timed_out or ended.returncode != 0:
        raise_failure(ended, what=what)
    try:
        return parse_report(ended.stdout)
    except ValueError as error:
        raise RunnerFailed(
            f"{what}: the runner's report cannot be used: {error}.",
            kind="exit",
            log_tail=log_tail(ended.stderr),
        ) from error


def raise_failure(ended: RunnerExit, *, what: str) -> NoReturn:
    """Raises the RunnerFailed that says by name how the process ended."""
    tail = log_tail(ended.stderr)
    name = signal_name(ended.returncode)
    last = tail[-1] if tail else "it left no message"
    if ended.timed_out:
        kind, message = "timeout", "did not finish within its time limit and was killed"
    elif ended.oom_kill and name == "SIGKILL":
        kind, message = "memory", "was killed by the kernel because memory ran out"
    elif _OUT_OF_MEMORY.search(ended.stderr):
        kind, message = "memory", f"ran out of memory: {last}"
    elif name == "SIGILL":
        kind, message = "signal", "executed an instruction that this CPU does not have (SIGILL)"
    elif name == "SIGKILL":
        kind, message = "signal", "was killed from outside (SIGKILL), perhaps for lack of memory"
    elif name:
        kind, message = "signal", f"crashed with {name}"
    elif missing := _MISSING_SYMBOL.search(ended.stderr):
        kind, message = "runtime", f"cannot be loaded: {missing.group(0)}"
    else:
        kind = _EXIT_KINDS.get(ended.returncode, "exit")
        message = f"ended with exit code {ended.returncode}: {last}"
    raise RunnerFailed(
        f"{what}: the runner {message}.",
        kind=kind,
        signal_name="" if ended.timed_out else name,
        log_tail=tail,
        remedy=_loader_remedy(message) or _REMEDIES.get(name) or _REMEDIES.get(kind, ""),
    )


def _loader_remedy(message: str) -> str:
    if not _MISSING_SYMBOL.search(message):
        return ""
    return next((text for pattern, text in _LOADER_REMEDIES if pattern.search(message)), "")


def signal_name(returncode: int) -> str:
    """``"SIGSEGV"`` for -11; empty for an exit code."""
    if returncode >= 0:
        return ""
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"


def log_tail(stderr: str) -> tuple[str, ...]:
    """The last lines of a log, each shortened to 500 characters, for messages and reports."""
    lines = [line.rstrip()[:500] for line in stderr.splitlines() if line.strip()]
    return tuple(lines[-LOG_LINES:])


def parse_report(text: str) -> RunnerReport:
    """The runner's stdout as a report.

    Raises:
        ValueError: it is not exactly one JSON object of schema 1, or a value is out of range.
    """
    document = parse_document(text)

    def number(key: str, most: int = MAX_INTEGER) -> int:
        return _int(document.get(key), key, most)

    latencies = document.get("latency_ns")
    if not isinstance(latencies, list) or len(latencies) > MAX_RUNS:
        raise ValueError("latency_ns is not a list of at most MAX_RUNS numbers")
    return RunnerReport(
        runner=_text(document, "runner"),
        runner_version=_text(document, "runner_version"),
        runtime_version=_text(document, "runtime_version"),
        threads=number("threads", 4096),
        load_ns=number("load_ns"),
        first_ns=number("first_ns"),
        latency_ns=tuple(_int(value, "latency_ns") for value in latencies),
        warmup_runs=number("warmup_runs"),
        peak_rss_bytes=number("peak_rss_bytes"),
        samples=number("samples"),
        inputs=_tensors(document, "inputs"),
        outputs=_tensors(document, "outputs"),
    )


def parse_document(text: str) -> dict[str, Any]:
    """The one JSON object of schema 1 that a runner prints (also with ``--selftest``)."""
    if len(text) > MAX_REPORT_BYTES:
        raise ValueError(f"it has more than {MAX_REPORT_BYTES} bytes")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"it is not JSON: {text[:200]!r}") from None
    if not isinstance(document, dict) or document.get("schema") != 1:
        raise ValueError("it is not an object of schema 1")
    return document


def _int(value: object, key: str, most: int = MAX_INTEGER) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ValueError(f"{key} is not a number from 0 to {most}: {str(value)[:50]}")
    return value


def _text(document: dict[str, Any], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError(f"{key} is not a short text")
    return printable(value)


def _tensors(document: dict[str, Any], key: str) -> tuple[TensorReport, ...]:
    items = document.get(key)
    if not isinstance(items, list) or len(items) > 1000:
        raise ValueError(f"{key} is not a list of tensors")
    tensors = []
    for item in items:
        if not isinstance(item, dict) or not isinstance(item.get("shape"), list):
            raise ValueError(f"{key} holds something that is not a tensor")
        if _text(item, "dtype") not in BYTES_PER_ELEMENT or len(item["shape"]) > 16:
            raise ValueError(f"{key} has an unknown dtype or too many dimensions")
        shape = tuple(_int(size, f"{key}.shape", 2**40) for size in item["shape"])
        tensors.append(TensorReport(_text(item, "name"), item["dtype"], shape))
    return tuple(tensors)
