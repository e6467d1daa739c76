"""Our daemon under the real wdmd: it is armed and fed, stays armed over a restart, and is let go of in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from leases.client import Client
from tests.leases.keeper.test_watchdog_peers import device, wdmd
from tests.support.leasehold_daemon import LeaseholdDaemon

pytestmark = [pytest.mark.peers, pytest.mark.slow]

__all__ = ["device", "wdmd"]

Wdmd = tuple[subprocess.Popen[bytes], str]


def beside(pid: int) -> list[str]:
    """Run a program where wdmd is: it has a /run of its own."""
    return ["nsenter", f"--mount=/proc/{pid}/ns/mnt"]


class UnderWdmd(LeaseholdDaemon):
    wdmd_pid = 0

    def argv(self) -> list[str]:  # type: ignore[override]
        return [*beside(self.wdmd_pid), *LeaseholdDaemon.argv()]


@pytest.fixture
def daemon(wdmd: Wdmd) -> Iterator[UnderWdmd]:
    made = UnderWdmd("hostA", "--watchdog", "wdmd", "--kill-grace", "2")
    made.wdmd_pid = wdmd[0].pid
    with made:
        yield made


@pytest.fixture
def image(daemon: UnderWdmd, images: Path) -> str:
    path = images / "disk.img"
    path.write_bytes(bytes(2 << 20))
    client = client_of(daemon)
    client.write_lockspace(f"LS:0:{path}:0", io_timeout=2)
    client.write_resource(f"LS:R1:{path}:1M")
    client.add_lockspace(f"LS:1:{path}:0", 2)
    return str(path)


def client_of(daemon: UnderWdmd) -> Client:
    return Client(str(daemon.socket_path))


def connections(daemon: UnderWdmd) -> dict[str, dict[str, int]]:
    """wdmd's clients that are ours, by name: its numbers for each, such as pid, dead and expire (0: not armed)."""
    done = subprocess.run([*beside(daemon.wdmd_pid), "wdmd", "-d"], capture_output=True, text=True, timeout=30)
    found = {}
    for line in done.stdout.splitlines():
        words = line.split()
        if words[:1] == ["client"] and words[3].startswith("leasehold_"):
            found[words[3]] = {name: int(value) for name, value in zip(words[4::2], words[5::2], strict=True)}
    return found


def expiry(daemon: UnderWdmd) -> int:
    return connections(daemon)["leasehold_LS:1"]["expire"]


def until(true: Callable[[], bool], seconds: float = 40.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.1)


def test_a_lockspace_is_under_wdmd_from_joining_to_leaving(daemon: UnderWdmd, image: str) -> None:
    armed = expiry(daemon)
    assert armed > 0
    until(lambda: expiry(daemon) > armed)
    client_of(daemon).remove_lockspace(f"LS:1:{image}:0")
    until(lambda: connections(daemon) == {})


def test_a_restart_of_the_daemon_keeps_it_armed_and_fed(daemon: UnderWdmd, image: str) -> None:
    before = connections(daemon)["leasehold_LS:1"]
    daemon.kill()
    daemon.start()
    after = connections(daemon)["leasehold_LS:1"]
    assert (after["pid"], after["dead"]) == (before["pid"], 0)
    until(lambda: expiry(daemon) > after["expire"])
    client_of(daemon).remove_lockspace(f"LS:1:{image}:0")
    until(lambda: connections(daemon) == {})


def test_without_its_keeper_the_watchdog_fires(daemon: UnderWdmd, image: str) -> None:
    keeper = connections(daemon)["leasehold_LS:1"]["pid"]
    os.kill(keeper, signal.SIGKILL)
    until(lambda: connections(daemon)["leasehold_LS:1"]["dead"] == 1)
    assert expiry(daemon) > 0


def test_the_watchdog_is_not_fed_for_a_daemon_that_stands_still(daemon: UnderWdmd, image: str) -> None:
    daemon.freeze()
    try:
        time.sleep(6)  # longer than the keeper puts up with
        armed = expiry(daemon)
        time.sleep(5.5)  # more than one renewal, and not yet so long that the lockspace has failed
        assert expiry(daemon) == armed
    finally:
        daemon.thaw()
    until(lambda: expiry(daemon) > armed)
