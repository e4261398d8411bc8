"""What holds for all tests: skips in CI, and which tests may run at the same time.

In CI a skipped test is a failed one: a missing tool must not pass for a passed test. A test that
really has nothing to test on some platform carries ``@pytest.mark.platform_specific``.

``make test`` runs two files at a time. What takes minutes to make (an emulated device, the main
job) is made once: all files that use such things are one group, which begins first.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.fixtures.main_job import job
from tests.fixtures.virtual import bookworm_device, machine, trixie_device

__all__ = ["bookworm_device", "job", "machine", "trixie_device"]

#: Fixtures of the whole session that are shared between files.
SHARED = ("bookworm_device", "job: Job", "machine: VirtualDevice", "trixie_device")
#: Also unpacks the packages of emulated devices.
WITH_SHARED = ("test_docker.py", "test_faults.py")

IN_CI = os.environ.get("CI", "").lower() in ("1", "true")


@functools.cache
def _uses_shared(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    return path.name in WITH_SHARED or any(name in text for name in SHARED)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest group begins first."""
    items.sort(key=lambda item: not _uses_shared(item.path))


# Not by pytest-xdist's own groups: they are read from marks in the name of a test, which pytest 9.2
# does not let anybody change.
@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "shared" if _uses_shared(config.rootpath / file) else file

    return ByFile(config, log)


def _fail_instead(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid} was skipped, which fails in CI. {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    expected = hasattr(report, "wasxfail") or item.get_closest_marker("platform_specific")
    if IN_CI and report.skipped and not expected:
        _fail_instead(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if IN_CI and report.skipped:
        _fail_instead(report)
    return report
