"""Watchdogs that leasehold feeds itself: one timer for all lockspaces, fed only while all of them are good.

The decision to feed rests on the expiry times that renewals set, and on nothing else. It needs no healthy
keeper to stop feeding: when renewals stop, the times stand still, the clock passes them, and `feed` does
nothing from then on, whoever calls it. Feeding ends `feed_margin` before the first expiry (paxos/timing.py),
so the timer runs out before that expiry + fire even if clocks drift apart.

Two ways to feed too late are closed here:
- the process sleeps (stopped, swapped, a hung ioctl) between looking at the clock and feeding. It looks again
  after feeding, and if the time has passed meanwhile, the timer is cut to what is left (`_cut`);
- a device is fed once more by the kernel when its descriptor closes without leave, e.g. when the process is
  killed long after it stopped feeding. So it is cut and closed as soon as feeding ends, as wdmd does.
What stays open: a process that is stopped while all is well and killed after its lockspaces expired is fed by
the kernel at its death, and the machine resets a full timeout after that. The daemon's two processes watch
each other for this reason.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable
from enum import Enum
from typing import ClassVar

from leases.keeper.watchdog.base import Watchdog, WatchdogConnection, boot_time, timing_of
from paxos.errors import WatchdogUnavailable


class State(Enum):
    """Of the timer, as far as we know."""

    OFF = "off"
    FED = "fed"
    CUT = "running out"


class FedConnection(WatchdogConnection):
    """One lockspace's say in the feeding: `feed_until` (boot-time seconds), None if it is not armed."""

    def __init__(self, watchdog: FedWatchdog, name: str) -> None:
        self.name = name
        self.feed_until: float | None = None
        self._watchdog = watchdog
        self._lock = threading.Lock()

    def arm(self, renewal_time: float, expire_time: float) -> None:
        self._watchdog.require_fed(self)
        with self._lock:
            self.feed_until = self._until(renewal_time, expire_time)

    def renew(self, renewal_time: float, expire_time: float) -> None:
        with self._lock:
            if self.feed_until is not None:
                self.feed_until = self._until(renewal_time, expire_time)

    def disarm(self) -> None:
        with self._lock:
            self.feed_until = None

    def close(self) -> None:
        self._watchdog.forget(self)

    def describe(self) -> str:
        until = self.feed_until
        if until is None:
            return f"{self._watchdog.describe()}; {self.name} not armed"
        left = until - boot_time()
        if left <= 0:
            return f"{self._watchdog.describe()}; {self.name} expired, not fed for {-left:.0f} s"
        return f"{self._watchdog.describe()}; {self.name} fed for {left:.0f} s more without a renewal"

    def _until(self, renewal_time: float, expire_time: float) -> float:
        return expire_time - timing_of(renewal_time, expire_time, self._watchdog.fire_timeout).feed_margin


class FedWatchdog(Watchdog):
    """The common part: who is armed, when to feed, and the thread that does it every `interval` seconds.

    Subclasses start, feed, cut and stop the timer; each of these may raise WatchdogUnavailable or OSError,
    and none of them is called by two threads at once.
    """

    #: whether the timer is somebody else's and runs from the start, whatever lockspaces there are
    always_fed: ClassVar[bool] = False
    #: seconds to wait for the feeder at the end, should it hang in the device
    JOIN_TIMEOUT: ClassVar[float] = 5.0

    def __init__(self, fire_timeout: int, *, clock: Callable[[], float] = boot_time, thread: bool = True) -> None:
        self.fire_timeout = fire_timeout
        self.interval = min(0.5, fire_timeout / 4)
        self.trouble = ""
        self._clock = clock
        self._threaded = thread
        self._connections: tuple[FedConnection, ...] = ()
        self._timer = threading.Lock()  # held while the device is worked on: no renewal ever takes it
        self._state = State.OFF
        self._ended = threading.Event()
        self._feeder: threading.Thread | None = None

    @abstractmethod
    def _start(self) -> None:
        """Start the timer, or take it up again after a cut, with `fire_timeout`."""

    @abstractmethod
    def _feed(self) -> None:
        """Give the timer `fire_timeout` seconds more."""

    @abstractmethod
    def _cut(self, seconds: float) -> None:
        """Have it fire in at most `seconds` (or as soon as it can), and be fed by nothing any more."""

    @abstractmethod
    def _stop(self) -> None:
        """Nothing is armed and nobody is connected: stop the running timer."""

    def open(self, name: str) -> FedConnection:
        connection = FedConnection(self, name)
        with self._timer:
            if self._state is State.OFF:
                self._try(self._start)
                self._state = State.FED
            self._connections += (connection,)
        self._run_feeder()
        return connection

    def feed(self, now: float) -> bool:
        """Feed the timer if no armed lockspace is overdue at `now` (boot-time seconds). Whether it did."""
        with self._timer:
            if not self._connections and not self.always_fed:
                return False
            fed = False
            if not self._overdue(now):
                fed = self._feed_or_say_why()
            overdue = self._overdue(self._clock())
            if overdue and self._state is State.FED:
                self._cut_short(min(overdue))
            return fed and not overdue

    def require_fed(self, connection: FedConnection) -> None:
        if connection not in self._connections:
            raise WatchdogUnavailable(reason=f"the connection of {connection.name} is closed")
        if not self.feed(self._clock()):
            raise WatchdogUnavailable(reason=self.trouble or "another lockspace expired, this machine is stopping")

    def forget(self, connection: FedConnection) -> None:
        with self._timer:
            if connection.feed_until is None:
                self._connections = tuple(other for other in self._connections if other is not connection)
                self._stop_if_idle()

    def close(self) -> None:
        self._ended.set()
        with self._timer:
            self._connections = tuple(one for one in self._connections if one.feed_until is not None)
            self._stop_if_idle()
        if self._feeder is not None:
            self._feeder.join(self.JOIN_TIMEOUT)
            self._feeder = None

    def _feed_or_say_why(self) -> bool:
        try:
            if self._state is not State.FED:
                self._start()
                self._state = State.FED
            self._feed()
        except (OSError, WatchdogUnavailable) as error:
            self.trouble = str(error)
            return False
        self.trouble = ""
        return True

    def _cut_short(self, feed_until: float) -> None:
        self._state = State.CUT
        try:
            self._cut(feed_until + self.fire_timeout - self._clock())
        except OSError as error:
            self.trouble = str(error)

    def _stop_if_idle(self) -> None:
        if self._connections or self.always_fed or self._state is State.OFF:
            return
        if self._state is State.CUT:
            self._try(self._start)
        self._state = State.OFF
        self._try(self._stop)

    def _overdue(self, now: float) -> list[float]:
        """The times up to which feeding was allowed, of all armed connections for which they have passed."""
        armed = [until for one in self._connections if (until := one.feed_until) is not None]
        return [until for until in armed if now >= until]

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            raise WatchdogUnavailable(reason=str(error)) from error

    def _run_feeder(self) -> None:
        if self._threaded and self._feeder is None:
            self._feeder = threading.Thread(target=self._feed_for_ever, name="watchdog feeder", daemon=True)
            self._feeder.start()

    def _feed_for_ever(self) -> None:
        while not self._ended.wait(self.interval):
            self.feed(self._clock())
