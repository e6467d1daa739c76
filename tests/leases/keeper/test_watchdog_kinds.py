"""A watchdog is chosen by name, and what is in force is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from leases.keeper.watchdog import KINDS, open_watchdog
from paxos.errors import InvalidUse, WatchdogUnavailable


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "auto"])
def test_each_kind_can_be_named_and_describes_itself(kind: str) -> None:
    watchdog = open_watchdog(kind, 60)
    assert watchdog.kind == kind
    assert watchdog.fire_timeout == 60
    assert len(watchdog.describe().splitlines()) == 1
    watchdog.close()


def test_auto_falls_back_to_a_guardian(tmp_path: Path) -> None:
    watchdog = open_watchdog("auto", 60, wdmd_socket=str(tmp_path / "none"), devices=[str(tmp_path / "none")])
    assert watchdog.kind == "guardian"
    assert "no wdmd at" in watchdog.describe() and "No such file" in watchdog.describe()


def test_named_kinds_do_not_fall_back(tmp_path: Path) -> None:
    for watchdog in (
        open_watchdog("wdmd", 60, wdmd_socket=str(tmp_path / "none")),
        open_watchdog("device", 60, devices=[str(tmp_path / "none")]),
    ):
        with pytest.raises(WatchdogUnavailable):
            watchdog.open("LS:1")
        watchdog.close()


def test_a_plain_file_is_no_device(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"")
    with pytest.raises(WatchdogUnavailable):
        open_watchdog("device", 60, devices=[str(path)]).open("LS:1")
    assert path.read_bytes() in (b"", b"V")


def test_none_says_that_nothing_is_in_force() -> None:
    connection = open_watchdog("none", 0).open("LS:1")
    connection.arm(1, 9)
    connection.hold(1)
    assert "no watchdog" in connection.describe()
    connection.disarm()
    connection.close()


def test_what_does_not_exist_or_makes_no_sense_is_refused() -> None:
    with pytest.raises(InvalidUse, match="no watchdog is called 'dog'"):
        open_watchdog("dog", 60)
    with pytest.raises(InvalidUse, match="can't fire after 0 s"):
        open_watchdog("device", 0)
