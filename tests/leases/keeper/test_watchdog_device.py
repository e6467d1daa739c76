"""A device is fed while every armed lockspace is renewed, and resets the machine in time when one isn't."""

from __future__ import annotations

import errno
import itertools
import random
import time
from collections.abc import Iterator

import pytest

from leases.keeper.watchdog.base import boot_time
from leases.keeper.watchdog.device import (
    WDIOF_ALARMONLY,
    WDIOF_MAGICCLOSE,
    WDIOF_SETTIMEOUT,
    DeviceWatchdog,
    Support,
)
from paxos.errors import WatchdogUnavailable
from paxos.timing import Timing

FIRE = 60
IO = 10
TIMES = Timing(IO, FIRE)
SANE = WDIOF_SETTIMEOUT | WDIOF_MAGICCLOSE


class Machine:
    """Virtual time and one watchdog device with the kernel's manners."""

    def __init__(self, options: int = SANE, timeout: int = 30, longest: int = 10_000) -> None:
        self.now = 1000.0
        self.options, self.timeout, self.longest = options, timeout, longest
        self.attributes = {"nowayout": "0", "state": "inactive"}
        self.present = True
        self.fd: int | None = None
        self.fires_at: float | None = None
        self.reset_at: float | None = None
        self.may_stop = False
        self.broken: set[str] = set()
        self.stall = 0.0  # seconds that pass just before the next keepalive takes effect
        self._fds = itertools.count(100)

    def clock(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        if self.fires_at is not None and self.now >= self.fires_at and self.reset_at is None:
            self.reset_at = self.fires_at

    def die(self) -> None:
        """The process is killed: the kernel closes what it had open."""
        if self.fd is not None:
            self.close(self.fd)

    # --- the driver ---

    def attribute(self, path: str, name: str) -> str:
        return self.attributes[name]

    def open(self, path: str) -> int:
        if not self.present:
            raise OSError(errno.ENOENT, "No such file or directory")
        if self.fd is not None:
            raise OSError(errno.EBUSY, "Device or resource busy")
        self.fd = next(self._fds)
        self.may_stop = False
        self._ping()
        return self.fd

    def support(self, fd: int) -> Support:
        self._call("support", fd)
        return Support(self.options, "emulated")

    def set_timeout(self, fd: int, seconds: int) -> None:
        self._call("set_timeout", fd)
        if not 1 <= seconds <= self.longest:
            raise OSError(errno.EINVAL, "Invalid argument")
        self.timeout = seconds
        self._ping()

    def get_timeout(self, fd: int) -> int:
        self._call("get_timeout", fd)
        return self.timeout

    def keepalive(self, fd: int) -> None:
        self._call("keepalive", fd)
        stall, self.stall = self.stall, 0.0
        self.pass_time(stall)
        self._ping()

    def allow_stop(self, fd: int) -> None:
        self._call("allow_stop", fd)
        self.may_stop = True

    def close(self, fd: int) -> None:
        self._call("close", fd)
        self.fd = None
        if self.may_stop or not self.options & WDIOF_MAGICCLOSE:
            self.fires_at = None
            self.attributes["state"] = "inactive"
        else:
            self._ping()

    def _call(self, name: str, fd: int) -> None:
        assert fd == self.fd, f"{name} of a descriptor that is not open"
        if name in self.broken:
            raise OSError(errno.EIO, "Input/output error")

    def _ping(self) -> None:
        self.fires_at = self.now + self.timeout
        self.attributes["state"] = "active"


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def watchdog(machine: Machine) -> Iterator[DeviceWatchdog]:
    yield device_of(machine)


def device_of(machine: Machine, fire: int = FIRE) -> DeviceWatchdog:
    return DeviceWatchdog(fire, ["/dev/watchdog0"], driver=machine, clock=machine.clock, thread=False)


def live(machine: Machine, watchdog: DeviceWatchdog, seconds: float, step: float = 0.5) -> None:
    """What the feeding thread does in that time."""
    end = machine.now + seconds
    while machine.now < end:
        machine.pass_time(step)
        watchdog.feed(machine.now)


def test_it_is_started_with_the_fire_timeout_when_the_first_lockspace_opens(
    machine: Machine, watchdog: DeviceWatchdog
) -> None:
    assert machine.fires_at is None
    watchdog.open("LS:1")
    assert machine.timeout == FIRE
    assert machine.fires_at == machine.now + FIRE


def test_it_is_fed_while_a_join_takes_long(machine: Machine, watchdog: DeviceWatchdog) -> None:
    watchdog.open("LS:1")
    live(machine, watchdog, 500)
    assert machine.reset_at is None


def test_renewed_lockspaces_keep_the_machine_up(machine: Machine, watchdog: DeviceWatchdog) -> None:
    connections = [watchdog.open(f"LS{n}:1") for n in range(3)]
    for connection in connections:
        connection.arm(machine.now, machine.now + TIMES.renewal_fail)
    for _ in range(50):
        live(machine, watchdog, TIMES.renewal_interval)
        for connection in connections:
            connection.renew(machine.now, machine.now + TIMES.renewal_fail)
    assert machine.reset_at is None


@pytest.mark.parametrize("io_timeout", [1, 2, 10, 30])
def test_the_machine_is_reset_before_others_may_take_over(machine: Machine, io_timeout: int) -> None:
    times = Timing(io_timeout, FIRE)
    watchdog = device_of(machine)
    connection = watchdog.open("LS:1")
    renewed = machine.now
    connection.arm(renewed, renewed + times.renewal_fail)
    live(machine, watchdog, times.host_dead + 10)
    assert machine.reset_at is not None
    assert machine.reset_at <= renewed + times.host_dead - times.feed_margin + watchdog.interval


def test_one_lockspace_that_is_not_renewed_is_enough(machine: Machine, watchdog: DeviceWatchdog) -> None:
    good, bad = watchdog.open("GOOD:1"), watchdog.open("BAD:1")
    start = machine.now
    for connection in (good, bad):
        connection.arm(start, start + TIMES.renewal_fail)
    while machine.now < start + TIMES.host_dead:
        live(machine, watchdog, TIMES.renewal_interval)
        good.renew(machine.now, machine.now + TIMES.renewal_fail)
    assert machine.reset_at is not None


def test_a_late_renewal_starts_the_feeding_again(machine: Machine, watchdog: DeviceWatchdog) -> None:
    connection = watchdog.open("LS:1")
    connection.arm(machine.now, machine.now + TIMES.renewal_fail)
    live(machine, watchdog, TIMES.renewal_fail + 30)
    assert watchdog.feed(machine.now) is False
    connection.renew(machine.now, machine.now + TIMES.renewal_fail)
    assert watchdog.feed(machine.now) is True
    live(machine, watchdog, 40)
    assert (machine.reset_at, machine.timeout) == (None, FIRE)


def test_a_renewal_that_is_itself_too_old_does_not(machine: Machine, watchdog: DeviceWatchdog) -> None:
    connection = watchdog.open("LS:1")
    start = machine.now
    connection.arm(start, start + TIMES.renewal_fail)
    live(machine, watchdog, TIMES.renewal_fail + 30)
    connection.renew(start + 20, start + 20 + TIMES.renewal_fail)
    live(machine, watchdog, FIRE)
    assert machine.reset_at is not None


def test_no_one_who_calls_feed_can_feed_after_expiry(machine: Machine, watchdog: DeviceWatchdog) -> None:
    connection = watchdog.open("LS:1")
    connection.arm(machine.now, machine.now + TIMES.renewal_fail)
    machine.pass_time(TIMES.renewal_fail - TIMES.feed_margin)
    assert [watchdog.feed(machine.now) for _ in range(5)] == [False] * 5


def test_disarming_the_expired_lockspace_saves_the_machine(machine: Machine, watchdog: DeviceWatchdog) -> None:
    _good, bad = watchdog.open("GOOD:1"), watchdog.open("BAD:1")
    bad.arm(machine.now, machine.now + TIMES.renewal_fail)
    live(machine, watchdog, TIMES.renewal_fail + 40)
    bad.disarm()
    bad.close()
    live(machine, watchdog, 500)
    assert machine.reset_at is None


def test_closing_the_last_one_right_after_its_expiry_stops_the_timer(
    machine: Machine, watchdog: DeviceWatchdog
) -> None:
    connection = watchdog.open("LS:1")
    connection.arm(machine.now, machine.now + TIMES.renewal_fail)
    live(machine, watchdog, TIMES.renewal_fail + 40)
    connection.disarm()
    connection.close()
    assert machine.fires_at is None


def test_the_letter_v_is_written_only_when_nothing_is_armed(machine: Machine, watchdog: DeviceWatchdog) -> None:
    first, second = watchdog.open("A:1"), watchdog.open("B:1")
    for connection in (first, second):
        connection.arm(machine.now, machine.now + TIMES.renewal_fail)
    first.disarm()
    first.close()
    assert machine.fires_at is not None
    second.close()  # still armed
    watchdog.close()
    assert machine.fires_at is not None and not machine.may_stop
    machine.pass_time(TIMES.host_dead)
    assert machine.reset_at is not None


def test_after_the_last_one_it_is_stopped_and_can_be_started_again(machine: Machine, watchdog: DeviceWatchdog) -> None:
    for _ in range(2):
        connection = watchdog.open("LS:1")
        connection.arm(machine.now, machine.now + TIMES.renewal_fail)
        connection.disarm()
        connection.close()
        connection.close()
        assert (machine.fires_at, machine.fd) == (None, None)


def test_a_renewal_after_disarming_does_not_arm_again(machine: Machine, watchdog: DeviceWatchdog) -> None:
    connection = watchdog.open("LS:1")
    connection.arm(machine.now, machine.now + TIMES.renewal_fail)
    connection.disarm()
    connection.renew(machine.now, machine.now + TIMES.renewal_fail)
    live(machine, watchdog, 500)
    assert machine.reset_at is None


def test_a_feeding_that_comes_late_because_the_process_slept_is_taken_back(
    machine: Machine, watchdog: DeviceWatchdog
) -> None:
    connection = watchdog.open("LS:1")
    renewed = machine.now
    connection.arm(renewed, renewed + TIMES.renewal_fail)
    live(machine, watchdog, 69)
    machine.stall = 50.0  # between looking at the clock and feeding
    live(machine, watchdog, 200)
    assert machine.reset_at is not None and machine.reset_at <= renewed + TIMES.host_dead


def test_the_kernels_last_feeding_at_a_late_death_comes_from_no_open_descriptor(
    machine: Machine, watchdog: DeviceWatchdog
) -> None:
    connection = watchdog.open("LS:1")
    renewed = machine.now
    connection.arm(renewed, renewed + TIMES.renewal_fail)
    live(machine, watchdog, 120)
    machine.die()
    machine.pass_time(100)
    assert machine.reset_at is not None and machine.reset_at <= renewed + TIMES.host_dead


def test_death_leaves_it_running_and_the_next_process_does_not_feed_it(machine: Machine) -> None:
    connection = device_of(machine).open("LS:1")
    connection.arm(machine.now, machine.now + TIMES.renewal_fail)
    machine.die()
    with pytest.raises(WatchdogUnavailable, match="running already"):
        device_of(machine).open("LS:1")
    machine.pass_time(FIRE)
    assert machine.reset_at is not None


def test_a_device_that_fails_to_be_fed_is_tried_again_and_says_so(machine: Machine, watchdog: DeviceWatchdog) -> None:
    connection = watchdog.open("LS:1")
    machine.broken.add("keepalive")
    assert watchdog.feed(machine.now) is False
    assert "Input/output error" in connection.describe()
    with pytest.raises(WatchdogUnavailable, match="Input/output error"):
        connection.arm(machine.now, machine.now + TIMES.renewal_fail)
    machine.broken.clear()
    assert watchdog.feed(machine.now) is True
    assert "TROUBLE" not in connection.describe()


def test_a_device_that_refuses_to_be_cut_is_not_closed(machine: Machine, watchdog: DeviceWatchdog) -> None:
    connection = watchdog.open("LS:1")
    renewed = machine.now
    connection.arm(renewed, renewed + TIMES.renewal_fail)
    live(machine, watchdog, 60)
    machine.broken.add("set_timeout")
    live(machine, watchdog, 100)
    assert machine.reset_at is not None and machine.reset_at <= renewed + TIMES.host_dead


@pytest.mark.parametrize(
    ("options", "attributes", "fire", "reason"),
    [
        (SANE, {}, 20_000, "Invalid argument"),
        (WDIOF_MAGICCLOSE, {}, FIRE, "fires after 30 s, not after 60 s"),
        (WDIOF_SETTIMEOUT, {}, FIRE, "no magic close"),
        (SANE | WDIOF_ALARMONLY, {}, FIRE, "does not reset"),
        (SANE, {"nowayout": "1"}, FIRE, "nowayout"),
        (SANE, {"state": "active"}, FIRE, "running already"),
    ],
)
def test_a_device_that_cannot_keep_the_promise_is_refused_and_left_stopped(
    options: int, attributes: dict[str, str], fire: int, reason: str
) -> None:
    machine = Machine(options)
    machine.attributes.update(attributes)
    with pytest.raises(WatchdogUnavailable, match=reason):
        device_of(machine, fire).open("LS:1")
    assert (machine.fd, machine.fires_at) == (None, None)


def test_no_device_is_refused(machine: Machine, watchdog: DeviceWatchdog) -> None:
    machine.present = False
    with pytest.raises(WatchdogUnavailable, match="No such file"):
        watchdog.open("LS:1")


def test_checking_leaves_it_as_it_was(machine: Machine, watchdog: DeviceWatchdog) -> None:
    watchdog.check()
    assert (machine.fd, machine.fires_at) == (None, None)
    connection = watchdog.open("LS:1")
    connection.arm(machine.now, machine.now + TIMES.renewal_fail)
    live(machine, watchdog, TIMES.renewal_fail)
    watchdog.check()
    assert machine.fires_at is not None and not machine.may_stop


def test_arming_beside_an_expired_lockspace_is_refused(machine: Machine, watchdog: DeviceWatchdog) -> None:
    expired, late = watchdog.open("A:1"), watchdog.open("B:1")
    expired.arm(machine.now, machine.now + TIMES.renewal_fail)
    live(machine, watchdog, TIMES.renewal_fail)
    with pytest.raises(WatchdogUnavailable, match="another lockspace expired"):
        late.arm(machine.now, machine.now + TIMES.renewal_fail)


def test_what_is_in_force_can_be_read(machine: Machine, watchdog: DeviceWatchdog) -> None:
    connection = watchdog.open("LS:1")
    assert "/dev/watchdog0 (emulated)" in watchdog.describe() and "not armed" in connection.describe()


@pytest.mark.slow
def test_a_thread_feeds_it_in_real_time(machine: Machine) -> None:
    watchdog = DeviceWatchdog(FIRE, ["/dev/watchdog0"], driver=machine)
    connection = watchdog.open("LS:1")
    now = boot_time()
    connection.arm(now - 5, now + 5)
    fed_at = []
    while machine.fd is not None:  # until it is cut
        machine.now = boot_time()
        fed_at.append((machine.fires_at or 0) - machine.timeout)
        time.sleep(0.05)
    assert len(set(fed_at)) >= 2
    connection.disarm()
    connection.close()
    assert machine.fires_at is None
    watchdog.close()


@pytest.mark.parametrize("seed", range(200))
def test_whatever_happens_the_promise_holds(seed: int) -> None:
    """Random renewals, stalls and disarmings: the machine is reset before others may take over."""
    dice = random.Random(seed)
    times = Timing(dice.choice([1, 2, 10]), FIRE)
    machine = Machine()
    watchdog = device_of(machine)
    connections = [watchdog.open(f"LS{n}:1") for n in range(dice.randint(1, 3))]
    renewed: dict[int, float] = {}  # of armed ones
    for n, connection in enumerate(connections):
        renewed[n] = machine.now
        connection.arm(machine.now, machine.now + times.renewal_fail)
    for _ in range(400):
        machine.pass_time(dice.choice([0.1, 0.5, 0.5, 0.5, 3.0]))
        if dice.random() < 0.01:
            machine.stall = dice.uniform(0, FIRE)
        watchdog.feed(machine.now)
        for n, connection in enumerate(connections):
            if n in renewed and dice.random() < 0.08:
                connection.renew(machine.now, machine.now + times.renewal_fail)
                renewed[n] = machine.now
            elif n in renewed and dice.random() < 0.003:
                connection.disarm()
                del renewed[n]
        if machine.reset_at is not None:
            break
        assert all(machine.now <= at + times.host_dead for at in renewed.values())
        if not renewed:
            break
    if renewed and machine.reset_at is None:
        live(machine, watchdog, times.host_dead)
        assert machine.reset_at is not None
    if machine.reset_at is not None:
        assert renewed and machine.reset_at <= min(renewed.values()) + times.host_dead
