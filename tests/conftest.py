"""What holds for all tests: skips in CI, and which tests may run at the same time.

In CI a skipped test is a failed one: a missing tool must not pass for a passed test. A test that
really has nothing to test on some platform carries ``@pytest.mark.platform_specific``.

``make test`` runs two files at a time. What takes minutes to make (an emulated device, the main
job) is made once: all files that use such things are one group, which begins first.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from tests.fixtures.main_job import job
from tests.fixtures.virtual import bookworm_device, machine, trixie_device

__all__ = ["bookworm_device", "job", "machine", "trixie_device"]

#: Fixtures of the whole session that are shared between files.
SHARED = {"bookworm_device", "job", "machine", "trixie_device"}
#: Also unpacks the packages of emulated devices.
WITH_SHARED = {"test_docker.py", "test_faults.py"}

IN_CI = os.environ.get("CI", "").lower() in ("1", "true")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files, and tell pytest-xdist which belong together."""
    first = {item.path for item in items if SHARED & set(getattr(item, "fixturenames", ()))}
    first |= {item.path for item in items if item.path.name in WITH_SHARED}
    items.sort(key=lambda item: item.path not in first)
    for item in items:
        group = "shared" if item.path in first else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


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
