"""systemd is told WATCHDOG=1 while every lockspace is renewed, and its timer fits into the fire timeout."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from leases.keeper.watchdog.systemd import SystemdWatchdog
from paxos.errors import WatchdogUnavailable
from paxos.timing import Timing

FIRE = 60
TIMES = Timing(10, FIRE)


class Manager:
    """systemd's end of NOTIFY_SOCKET, and a virtual clock."""

    def __init__(self, path: str) -> None:
        self.now = 1000.0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.setblocking(False)
        self.environ = {"NOTIFY_SOCKET": path.replace("\0", "@"), "WATCHDOG_USEC": "50000000"}

    def clock(self) -> float:
        return self.now

    def heard(self) -> list[str]:
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return messages

    def watchdog(self, fire: int = FIRE, **environ: str) -> SystemdWatchdog:
        return SystemdWatchdog(fire, environ=self.environ | environ, clock=self.clock, thread=False)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    it = Manager(str(tmp_path / "notify"))
    yield it
    it.close()


def test_it_is_fed_from_the_start_and_its_timer_leaves_room_for_the_abort(manager: Manager) -> None:
    watchdog = manager.watchdog()
    assert watchdog.feed(manager.now)
    assert manager.heard() == ["WATCHDOG_USEC=50000000\nWATCHDOG=1", "WATCHDOG=1"]


def test_a_longer_timer_of_the_unit_is_made_shorter_and_a_shorter_one_kept(manager: Manager) -> None:
    for unit, told in (("90000000", 50_000_000), ("20000000", 20_000_000)):
        manager.watchdog(WATCHDOG_USEC=unit).feed(manager.now)
        assert manager.heard()[0] == f"WATCHDOG_USEC={told}\nWATCHDOG=1"


def test_an_expired_lockspace_ends_the_feeding_until_it_is_renewed(manager: Manager) -> None:
    watchdog = manager.watchdog()
    connection = watchdog.open("LS:1")
    connection.arm(manager.now, manager.now + TIMES.renewal_fail)
    manager.heard()
    manager.now += TIMES.renewal_fail - TIMES.feed_margin
    assert [watchdog.feed(manager.now) for _ in range(3)] == [False] * 3
    assert manager.heard() == ["WATCHDOG_USEC=50000000"]  # once more, and no WATCHDOG=1
    connection.renew(manager.now, manager.now + TIMES.renewal_fail)
    assert watchdog.feed(manager.now)
    assert manager.heard() == ["WATCHDOG_USEC=50000000\nWATCHDOG=1", "WATCHDOG=1"]


def test_a_feeding_that_comes_late_is_taken_back(manager: Manager) -> None:
    watchdog = manager.watchdog()
    connection = watchdog.open("LS:1")
    connection.arm(manager.now, manager.now + TIMES.renewal_fail)
    manager.heard()
    looked_at = manager.now
    manager.now += 100  # the process sleeps between looking at the clock and feeding
    watchdog.feed(looked_at)
    # host dead at 140, 10 s of margin for clocks, 10 s from SIGABRT to SIGKILL: 20 s are left of it
    assert manager.heard() == ["WATCHDOG=1", "WATCHDOG_USEC=20000000"]


def test_disarmed_lockspaces_have_no_say(manager: Manager) -> None:
    watchdog = manager.watchdog()
    connection = watchdog.open("LS:1")
    connection.arm(manager.now, manager.now + TIMES.renewal_fail)
    connection.disarm()
    connection.close()
    manager.now += 1000
    assert watchdog.feed(manager.now)


def test_an_abstract_socket_will_do() -> None:
    manager = Manager(f"\0leasehold-test-{os.getpid()}")
    try:
        assert manager.watchdog().feed(manager.now)
        assert manager.heard()
    finally:
        manager.close()


@pytest.mark.parametrize(
    ("environ", "fire", "reason"),
    [
        ({"NOTIFY_SOCKET": ""}, FIRE, "no NOTIFY_SOCKET"),
        ({"WATCHDOG_USEC": ""}, FIRE, "no WATCHDOG_USEC"),
        ({"WATCHDOG_USEC": "soon"}, FIRE, "no WATCHDOG_USEC"),
        ({"NOTIFY_SOCKET": "/nowhere/notify"}, FIRE, "No such file"),
        ({}, 10, "leaves no time"),
    ],
)
def test_where_systemd_does_not_watch_nothing_is_opened(
    manager: Manager, environ: dict[str, str], fire: int, reason: str
) -> None:
    with pytest.raises(WatchdogUnavailable, match=reason):
        manager.watchdog(fire, **environ).open("LS:1")


def test_what_is_in_force_can_be_read(manager: Manager) -> None:
    watchdog = manager.watchdog(WATCHDOG_PID="1")
    assert "this unit's processes, and only those, 50 s after" in watchdog.describe()
    assert "NotifyAccess=all" in watchdog.describe()
