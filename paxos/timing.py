"""Time: every timeout and deadline of the protocol, derived from two numbers.

`io_timeout` (seconds) is how long one disk I/O may take; `fire_timeout` (seconds) is how long a watchdog runs
after its last feeding, the same on every host. The argument that all of leasehold rests on is this line:

    last renewal --- 8 io ---> feeding has stopped --- fire ---> the host has been reset

so a host whose renewals have not changed for `host_dead` = 8 io + fire seconds can no longer use what it held.
Whoever judges another host uses the io_timeout stored in *that host's* delta lease (ondisk.md section 3).

Clocks need not agree, only run alike: while a judge counts `host_dead`, its clock and the judged host's may
drift apart by CLOCK_RATE_ERROR. `feed_margin` pays for that: feeding ends that much before `renewal_fail`.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_IO_TIMEOUT = 10
DEFAULT_FIRE_TIMEOUT = 60
#: larger values do not survive the format: acquire and renew store the low 8 bits
MAX_IO_TIMEOUT = 255
#: writing a whole new area may take this long (seconds)
INIT_WRITE_TIMEOUT = 60.0
#: how far two hosts' clocks may run apart, as a share of the time counted
CLOCK_RATE_ERROR = 0.02
#: SIGKILL may be sent this often to one process before it counts as stuck
MAX_KILLS = 100


@dataclass(frozen=True, slots=True)
class Timing:
    """All times in seconds, for a host with this `io_timeout` under a watchdog with this `fire_timeout`."""

    io_timeout: float
    fire_timeout: float = DEFAULT_FIRE_TIMEOUT

    def __post_init__(self) -> None:
        assert self.io_timeout > 0 and self.fire_timeout >= 0

    # --- renewing one's own host lease, measured from the last success ---

    @property
    def renewal_interval(self) -> float:
        return 2 * self.io_timeout

    @property
    def renewal_warn(self) -> float:
        return 6 * self.io_timeout

    @property
    def renewal_fail(self) -> float:
        """Recovery starts, and the watchdog connection expires."""
        return 8 * self.io_timeout

    @property
    def kill_grace(self) -> float:
        """From the start of recovery until SIGKILL replaces SIGTERM and kill paths."""
        if self.fire_timeout >= 60:
            return 40.0
        return 15.0 if self.fire_timeout >= 30 else 0.0

    @property
    def sigkill(self) -> float:
        return self.renewal_fail + self.kill_grace

    @property
    def feed_margin(self) -> float:
        """A watchdog that leasehold feeds itself is fed for the last time this long before `renewal_fail`.

        The reference's watchdog daemon keeps 10 s; with small io_timeouts that would leave no time to feed, and where
        `host_dead` is very long it would not pay for clocks that run apart.
        """
        return max(CLOCK_RATE_ERROR * self.host_dead, min(10.0, 2 * self.io_timeout))

    @property
    def pause_suspected(self) -> float:
        """Others' clocks ahead of ours by more than this since the last look: we may have been paused.

        More than the phase between two renewals explains, less than the pause it takes to lose a lease.
        """
        return max(self.renewal_interval + 1.0, self.fire_timeout / 2)

    # --- judging another host by this host's io_timeout ---

    @property
    def host_dead(self) -> float:
        return self.renewal_fail + self.fire_timeout

    # --- single operations ---

    @property
    def renewal_read(self) -> float:
        return self.io_timeout

    @property
    def renewal_read_extend(self) -> float:
        """How long a renewal waits for the overdue read of the attempt before it."""
        return self.io_timeout

    @property
    def renewal_write(self) -> float:
        """Giving up earlier gains nothing: a retry could not be faster (ondisk.md 4.3 step 5)."""
        return self.host_dead

    @property
    def join_settle(self) -> float:
        """Between writing a delta lease and reading it back; by the *previous* owner's io_timeout."""
        return 2 * self.io_timeout

    @property
    def bitmap_life(self) -> float:
        """How long a bit for another host stays set, and the pause between two requests honoured."""
        return 6 * self.io_timeout


#: pause between two renewal attempts, and between the end of the interval and the attempt (seconds)
RENEWAL_PAUSE = 0.5


def judging_io_timeout(stored: int, own: float) -> float:
    """The io_timeout (seconds) to judge a host by, from the field in its delta lease.

    Better than the reference (ondisk.md 13 item 7): the field has no checksum and decides about life and death.
    0 counts as our own; what a host could not have been given makes the wait longer, never shorter.
    """
    if stored == 0:
        return own
    return float(stored) if stored <= MAX_IO_TIMEOUT else max(own, float(stored))
