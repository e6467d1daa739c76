"""Against the real thing: wdmd itself as our watchdog, and the kernel's calls as the C library has them.

The device is `tests/support/watchdog_device.c`, preloaded into the process that opens it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from leases.keeper.watchdog import open_watchdog
from leases.keeper.watchdog.base import boot_time
from leases.keeper.watchdog.wdmd import WdmdWatchdog
from paxos.errors import WatchdogUnavailable

PATIENCE = 60.0
SUPPORT = Path(__file__).parents[2] / "support"


class Device:
    """The emulated device: how to preload it, and what was done to it."""

    def __init__(self, folder: Path) -> None:
        self.library = folder / "watchdog_device.so"
        self.log = folder / "device.log"
        self.log.touch()
        source = SUPPORT / "watchdog_device.c"
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(self.library), str(source)], check=True)

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "LD_PRELOAD": str(self.library), "WATCHDOG_LOG": str(self.log)}

    def events(self) -> list[str]:
        """What was done, without the times; a run of keepalives as one."""
        words = [line.split(maxsplit=1)[1].removesuffix(" 0") for line in self.log.read_text().splitlines()]
        return [word for n, word in enumerate(words) if word != "keepalive" or words[n - 1 : n] != ["keepalive"]]

    def await_event(self, condition: Callable[[list[str]], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition(self.events()):
            assert time.monotonic() < deadline, self.events()
            time.sleep(0.1)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path)


@pytest.fixture
def wdmd(device: Device) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A running wdmd with /run and /dev/shm of its own, and the path of its socket from outside."""
    start = (
        "mount -t tmpfs none /run && mount -t tmpfs none /dev/shm && "
        "mkdir /run/wdmd && touch /run/watchdog0 && "
        f"LD_PRELOAD={device.library} exec wdmd -D -H 0 -G root -w /run/watchdog0"
    )
    environment = {**os.environ, "WATCHDOG_LOG": str(device.log)}
    process = subprocess.Popen(["unshare", "-m", "sh", "-c", start], env=environment, stderr=subprocess.DEVNULL)
    path = f"/proc/{process.pid}/root/run/wdmd/wdmd.sock"
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(WatchdogUnavailable):
            WdmdWatchdog(60, path).check()
            break
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    yield process, path
    process.kill()
    process.wait()


@pytest.mark.peers
@pytest.mark.slow
def test_wdmd_stops_feeding_for_an_expired_lockspace_and_goes_on_when_it_is_disarmed(
    device: Device, wdmd: tuple[subprocess.Popen[bytes], str]
) -> None:
    process, path = wdmd
    watchdog = open_watchdog("auto", 60, wdmd_socket=path)
    assert watchdog.kind == "wdmd"
    connection = watchdog.open("sanlock_LS:1")
    connection.arm(boot_time(), boot_time() + 80)
    os.kill(process.pid, signal.SIGTERM)  # refused: it is referred to
    fed_once = device.events()
    assert fed_once[-1] == "keepalive" and "close" not in fed_once[fed_once.index("keepalive") :]
    connection.renew(boot_time() - 75, boot_time() + 5)
    device.await_event(lambda events: events[-1] == "close")
    assert "stop" not in device.events()[len(fed_once) :]
    connection.disarm()
    device.await_event(lambda events: events[-1] == "keepalive")
    assert process.poll() is None
    connection.close()
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    assert device.events()[-2:] == ["stop", "close"]


@pytest.mark.peers
@pytest.mark.slow
def test_wdmd_remembers_a_lockspace_whose_keeper_died(
    device: Device, wdmd: tuple[subprocess.Popen[bytes], str]
) -> None:
    _, path = wdmd
    connection = open_watchdog("wdmd", 60, wdmd_socket=path).open("sanlock_LS:1")
    connection.arm(boot_time() - 69, boot_time() + 11)
    connection.close()  # as the kernel does when we die
    device.await_event(lambda events: events[-1] == "close")
    assert device.events()[-2] == "keepalive"


@pytest.mark.peers
def test_wdmd_with_another_fire_timeout_is_refused(wdmd: tuple[subprocess.Popen[bytes], str]) -> None:
    with pytest.raises(WatchdogUnavailable, match="after 60 s, not after 30 s"):
        open_watchdog("wdmd", 30, wdmd_socket=wdmd[1]).open("sanlock_LS:1").arm(boot_time(), boot_time() + 80)


@pytest.mark.peers
def test_the_device_gets_the_calls_that_linux_defines(device: Device) -> None:
    program = """
        from leases.keeper.watchdog import open_watchdog
        from leases.keeper.watchdog.base import boot_time
        watchdog = open_watchdog("device", 60, devices=["/nowhere/watchdog0"])
        connection = watchdog.open("LS:1")
        connection.arm(boot_time(), boot_time() + 80)
        print(connection.describe())
        connection.disarm()
        connection.close()
        watchdog.open("LS:1").arm(boot_time() - 80, boot_time())
        watchdog.feed(boot_time())
        watchdog.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=device.environment, capture_output=True, text=True, timeout=PATIENCE, check=True,
    )  # fmt: skip
    assert "/nowhere/watchdog0 (preloaded): resets this machine within 60 s" in done.stdout
    opening = ["open", "support", "settimeout 60", "gettimeout 60"]
    events = device.events()
    assert events[:5] == [*opening, "keepalive"]
    assert events[5:12] == ["stop", "close", *opening, "keepalive"]
    # the last line of a lockspace that expired: cut to what is left, and closed without leave
    assert events[12] in ("settimeout 49", "settimeout 50")
    assert events[13:] == ["close"]
