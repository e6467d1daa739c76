"""In CI, a test of real programs or real storage that skips itself has failed: what it shows was not shown."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest

MARKERS = ("peers", "storage")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    marked = any(item.get_closest_marker(marker) for marker in MARKERS)
    if marked and report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI"):
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and os.environ.get("CI"):  # a whole file, whose markers nobody gets to see
        _fail(report)
    return report


def _fail(report: Any) -> None:
    report.outcome = "failed"
    report.longrepr = f"skipped, which it must not be in CI: {report.longrepr}"
