"""In CI a skipped test is a failed one: a missing tool must not pass for a passed test.

A test that really has nothing to test on some platform carries ``@pytest.mark.platform_specific``.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from tests.fixtures.main_job import job
from tests.fixtures.virtual import bookworm_device, machine, trixie_device

__all__ = ["bookworm_device", "job", "machine", "trixie_device"]

IN_CI = os.environ.get("CI", "").lower() in ("1", "true")


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
