"""Shared set-up of all tests: the project's root is importable, fixtures of `tests/support` are known."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.never_skipped import pytest_make_collect_report, pytest_runtest_makereport
from tests.support.peers import images, sanlock_daemon, sanlock_daemons
from tests.support.storage import faulty_disk, late_disk, loop_disk, plain_disk

__all__ = [
    "faulty_disk",
    "images",
    "late_disk",
    "loop_disk",
    "plain_disk",
    "pytest_make_collect_report",
    "pytest_runtest_makereport",
    "sanlock_daemon",
    "sanlock_daemons",
]
