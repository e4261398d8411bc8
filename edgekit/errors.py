"""The exceptions of edgekit. Each class carries an exit code; each instance a cause and a remedy.

EdgekitError                      1   a bug or something nobody foresaw
├── UsageError                    2   a wrong argument or option
│   ├── ConfigError               2   edgekit.toml; names the key and the line
│   ├── DataError                 2   calibration or evaluation data that cannot be used
│   ├── SourceError               2   the model cannot be loaded
│   └── MissingExtra              2   a framework is not installed; names the pip extra
├── BundleError                   2   a bundle or manifest that is damaged, hostile or too new
├── ExportFailed                  8   one candidate could not be made (aborts only with --strict)
│   └── WorkerCrashed             8   its process died: signal, out of memory, time limit
├── NothingEligible               3   no candidate keeps the accuracy budget
├── DeviceError                   4   device unreachable or unfit
│   ├── LinkLost                  4   the connection broke
│   └── RunnerFailed              4   a runner on the device failed; says how
├── RegressionFound               5   found by `gate`
├── MeasurementInvalid            6   throttled or too noisy
└── DeployRolledBack              7   the health check failed; the old release stays active
"""

from __future__ import annotations

from typing import ClassVar


class EdgekitError(Exception):
    """Base of all errors that edgekit raises on purpose.

    Args:
        message: what failed and why, in one or two sentences.
        remedy: what the user can do next; empty where there is nothing to advise.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class UsageError(EdgekitError):
    exit_code = 2


class ConfigError(UsageError):
    """A wrong entry in edgekit.toml; ``message`` starts with file, line and key."""


class DataError(UsageError):
    """Calibration or evaluation data that is missing, malformed, or in both sets."""


class SourceError(UsageError):
    """The model named on the command line cannot be loaded or traced."""


class MissingExtra(UsageError):
    """A framework is not installed.

    Args:
        package: the import name that is missing.
        extra: the pip extra of edgekit that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed.", remedy=f"pip install 'edgekit[{extra}]'")
        self.package = package
        self.extra = extra


class BundleError(EdgekitError):
    exit_code = 2


class ExportFailed(EdgekitError):
    exit_code = 8


class _ProcessEnded(EdgekitError):
    """How a process ended that gave no result, with the last lines that it printed."""

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        signal_name: str = "",
        log_tail: tuple[str, ...] = (),
        remedy: str = "",
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.kind = kind
        self.signal_name = signal_name
        self.log_tail = log_tail


class WorkerCrashed(_ProcessEnded, ExportFailed):
    """A worker process died or was stopped.

    Args:
        message: what was being done and how it ended.
        kind: ``"signal"``, ``"timeout"``, ``"memory"``, ``"exception"`` or ``"exit"``.
        signal_name: e.g. ``"SIGSEGV"``; empty where no signal was involved.
        log_tail: the last lines that the worker printed.
    """


class NothingEligible(EdgekitError):
    exit_code = 3


class DeviceError(EdgekitError):
    exit_code = 4


class LinkLost(DeviceError):
    """The connection to the device broke or timed out."""


class RunnerFailed(_ProcessEnded, DeviceError):
    """A runner ended without a result.

    Args:
        message: what failed.
        kind: ``"signal"``, ``"timeout"``, ``"memory"``, ``"model"``, ``"runtime"`` (the runtime
            itself does not load), ``"lost"`` (the measuring process went away), ``"usage"`` or
            ``"exit"``.
        signal_name: e.g. ``"SIGILL"``; empty where no signal was involved.
        log_tail: the last lines of the runner's stderr.
    """


class RegressionFound(EdgekitError):
    exit_code = 5


class MeasurementInvalid(EdgekitError):
    exit_code = 6


class DeployRolledBack(EdgekitError):
    exit_code = 7
