"""Shared set-up of all tests: the project's root is importable, fixtures of `tests/support` are known."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.leasehold_daemon import leasehold_daemon, leasehold_daemons
from tests.support.never_skipped import pytest_make_collect_report, pytest_runtest_makereport
from tests.support.peers import images, sanlock_daemon, sanlock_daemons
from tests.support.storage import faulty_disk, late_disk, loop_disk, plain_disk
from tests.support.volumes import directory, host_process, join, volume

__all__ = [
    "directory",
    "faulty_disk",
    "host_process",
    "images",
    "join",
    "late_disk",
    "leasehold_daemon",
    "leasehold_daemons",
    "loop_disk",
    "plain_disk",
    "pytest_make_collect_report",
    "pytest_runtest_makereport",
    "sanlock_daemon",
    "sanlock_daemons",
    "volume",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-transcripts",
        action="store_true",
        help="write what happens in the stories of tests/transcripts into them, for review as a diff",
    )
