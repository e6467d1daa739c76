"""What every watchdog promises the keeper: stop this lockspace's users in time if its renewals stop.

The promise is one line of `paxos/timing.py`: a lockspace last renewed at T can no longer be used by this host
at T + 8 io + fire. A watchdog is told two times after every good renewal, T and `expire` = T + 8 io, and
nothing else; it keeps quiet until `expire`, and then force is certain before `expire` + fire. It needs no
word from a keeper that is stuck: silence is the signal.

The order of calls for one lockspace (daemon.md section 13):

    open      before the host lease is acquired, so that a host without a watchdog does not join
    arm       right after it was acquired, with the time of that renewal
    renew     after each good renewal, and only then
    disarm    when nobody uses the lockspace any more; from its return on, nothing is stopped on its account
    close     closing what is still armed leaves it armed: it will expire

T is read *before* the renewal's write is submitted, never after: other hosts may have seen the write that
early.
"""

from __future__ import annotations

import select
import socket
import time
from abc import ABC, abstractmethod
from typing import ClassVar

from paxos.timing import Timing


def boot_time() -> float:
    """Seconds since boot, counting suspended time: the one clock of deadlines."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def readable(channel: socket.socket, deadline: float) -> bool:
    """Wait until `channel` has something to read or is hung up. False if neither by `deadline` (boot time).

    Sockets of watchdogs never block of themselves: one that may wait to read would also wait to send, and a
    renewal must not.
    """
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    return bool(poll.poll(max(deadline - boot_time(), 0.0) * 1000))


def timing_of(renewal_time: float, expire_time: float, fire_timeout: float) -> Timing:
    """The times of a lockspace that expires `expire_time - renewal_time` = 8 io after a renewal."""
    return Timing((expire_time - renewal_time) / Timing(1).renewal_fail, fire_timeout)


class WatchdogConnection(ABC):
    """One lockspace under a watchdog. All times are boot-time seconds.

    The renewal thread calls `renew`, which never waits for what another thread does with this connection
    except the end of its disarming. The other calls may wait a few seconds for the watchdog's answer.
    """

    name: str

    @abstractmethod
    def arm(self, renewal_time: float, expire_time: float) -> None:
        """From now on the lockspace must be renewed before `expire_time`. WatchdogUnavailable."""

    @abstractmethod
    def renew(self, renewal_time: float, expire_time: float) -> None:
        """Move the expiry. Nothing happens to a connection that is not armed: a late renewal does not arm it.

        WatchdogUnavailable if the watchdog can't be told; what was told before then stays in force.
        """

    @abstractmethod
    def disarm(self) -> None:
        """Nobody uses the lockspace now. WatchdogUnavailable if that can't be told, and then it fires."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the connection; if it is armed, it stays armed and expires. Harmless when repeated."""

    @abstractmethod
    def describe(self) -> str:
        """One line: what happens to whom, and when, if renewals stop."""

    # A watchdog that resets the machine need not know who holds leases; the guardian does.

    def hold(self, pid: int, *, group: bool = False, terminate: bool = True) -> None:  # noqa: B027
        """Process `pid` (or the process group of that number) uses a lease of this lockspace from now on.

        With `terminate` false it is never sent SIGTERM, only SIGKILL: for holders that are stopped in a way
        of their own. WatchdogUnavailable if it can't be watched.
        """

    def unhold(self, pid: int) -> None:  # noqa: B027
        """Process `pid` uses no lease of this lockspace any more. Harmless if it was not known."""


class Watchdog(ABC):
    """One kind of force, for any number of lockspaces. `fire_timeout` in seconds, the same on every host."""

    kind: ClassVar[str]
    fire_timeout: int

    @abstractmethod
    def open(self, name: str) -> WatchdogConnection:
        """A connection for one lockspace, not armed yet. WatchdogUnavailable if it could not be armed."""

    @abstractmethod
    def check(self) -> None:
        """WatchdogUnavailable if `open` could not work now. Leaves everything as it was."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything that is not armed. What is armed expires."""

    @abstractmethod
    def describe(self) -> str:
        """One line: which force it is, and what it can't do."""
