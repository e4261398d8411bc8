"""What the end of a worker process means: every way of failing becomes one typed error."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit import errors

#: A crash dump of some depth, and what was printed before it.
_LOG_TAIL_LINES = 20
_LOG_TAIL_BYTES = 16_384


def raised(name: str, error: Mapping[str, Any], log: Path) -> errors.EdgekitError:
    """The job's function raised: edgekit's own errors arrive as they were, others are crashes."""
    known = getattr(errors, str(error["class"]), None)
    if known is errors.MissingExtra:
        return errors.MissingExtra(error["package"], error["extra"])
    if known is errors.WorkerCrashed:
        return errors.WorkerCrashed(
            error["message"], kind="exception", log_tail=log_tail(log), remedy=error["remedy"]
        )
    if (
        isinstance(known, type)
        and issubclass(known, errors.EdgekitError)
        and known is not errors.RunnerFailed
    ):
        return known(error["message"], remedy=error["remedy"])
    kind = "memory" if error["class"] == "MemoryError" else "exception"
    message = f"{name}: {error['class']}: {error['message']}"
    return errors.WorkerCrashed(message, kind=kind, log_tail=log_tail(log))


def over_time(name: str, timeout_s: float, log: Path) -> errors.WorkerCrashed:
    return errors.WorkerCrashed(
        f"{name} was stopped after its limit of {timeout_s:g} s.",
        kind="timeout",
        log_tail=log_tail(log),
        remedy="Raise quantize.timeout_s, or leave this runtime out.",
    )


def over_memory(name: str, limit_bytes: int, log: Path) -> errors.WorkerCrashed:
    # How much it was is chance; the same failure reads the same each time.
    return errors.WorkerCrashed(
        f"{name} was stopped above its limit of {limit_bytes / 1e6:.0f} MB.",
        kind="memory",
        log_tail=log_tail(log),
        remedy="Raise quantize.memory_mb, or leave this runtime out.",
    )


def died(name: str, returncode: int, log: Path) -> errors.WorkerCrashed:
    """The process ended without an answer; ``returncode`` is as :mod:`subprocess` gives it."""
    tail = log_tail(log)
    if returncode < 0:
        signal_name = signal.Signals(-returncode).name
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
        f"{name} ended with exit code {returncode} and no result.", kind="exit", log_tail=tail
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
