"""One lockspace in the keeper process: its host lease is taken, renewed and given back here, its watchdog fed.

What other hosts' sectors say is not looked at here. Each area that a renewal read is copied into memory shared with
the daemon, which has numpy, and the time, for that.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from leases.keeper.decisions import Holder, Stop, Vitals, keep_renewing
from leases.keeper.jitter import Jitter
from leases.keeper.messages import Message, pack_error, text
from leases.keeper.renewal import RenewalThread
from leases.keeper.watchdog.base import WatchdogConnection
from paxos import host_lease
from paxos.disk.abort import AbortSignal
from paxos.disk.device import Devices
from paxos.disk.engine import Engine
from paxos.errors import Aborted, DiskError, LeaseholdError, WatchdogUnavailable
from paxos.host_lease import HostLease, Renewal
from paxos.lockspace_area import LockspaceArea, Observation
from paxos.steps import Steps, now
from paxos.timing import RENEWAL_PAUSE, Timing

if TYPE_CHECKING:
    from paxos.liveness import Member
    from paxos.resource import Held

_CAPACITY = 16
_NOTHING = Observation((), (), 0.0)

Tell = Callable[[Message], None]


class SharedViews:
    """Two areas in memory shared with the daemon, written in turn, so that it can look at one for a renewal's time."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self._map = mmap.mmap(fd, 2 * size)
        self._next = 0

    def put(self, view: memoryview) -> int:
        """Which of the two it is now."""
        place, self._next = self._next, 1 - self._next
        self._map[place * self.size : place * self.size + len(view)] = view
        return place

    def close(self) -> None:
        self._map.close()
        os.close(self.fd)


class Kept:
    """`tell` sends a message to the daemon and never waits; `may_feed` says whether the daemon is there."""

    def __init__(
        self,
        number: int,
        area: LockspaceArea,
        host_id: int,
        owner_name: bytes,
        timing: Timing,
        connection: WatchdogConnection,
        views: SharedViews,
        tell: Tell,
        may_feed: Callable[[], bool],
    ) -> None:
        self.number = number
        self.area = area
        self.host_id = host_id
        self.owner_name = owner_name
        self.connection = connection
        self.vitals = Vitals(timing, 0.0)
        self.lease: HostLease | None = None
        self.views = views
        #: device and inode of the disk, so that the daemon can see that it has opened the same
        self.file = (0, 0)
        self._tell = tell
        self._may_feed = may_feed
        self._jitter = Jitter()
        self._due = 0.0
        self._renewal: RenewalThread | None = None

    def start(self) -> None:
        """Join, and go on renewing. Raises CannotOpen."""
        devices = Devices()
        status = os.fstat(devices.open(self.area.place.disk, self.vitals.timing.io_timeout).fd)
        self.file = (status.st_dev, status.st_ino)
        engine = Engine(devices, capacity=_CAPACITY)
        self._renewal = RenewalThread(text(self.area.name), engine, self._live(), self._ended)
        self._renewal.start()

    def abort(self, reason: str) -> None:
        self.vitals.leaving = True
        if self._renewal is not None:
            self._renewal.abort(reason)

    def wait(self) -> None:
        """Until renewals have ended."""
        if self._renewal is not None:
            self._renewal.join(2 * self.vitals.timing.io_timeout)

    def attached(self, views: SharedViews) -> None:
        """Another daemon looks from now on."""
        self.views.close()
        self.views = views

    def state(self) -> Message:
        """What a daemon must know to go on with it."""
        assert self.lease is not None
        return {
            "space": self.number,
            "name": text(self.area.name),
            "generation": self.lease.generation,
            "last_success": self.vitals.last_success,
            "failed": self.vitals.failure is not None,
            "file": self.file,
        }

    def _live(self) -> Steps[None]:
        timing = self.vitals.timing
        lease = yield from host_lease.acquire(self.area, self.host_id, self.owner_name, timing, self._progress)
        self.vitals.last_success = lease.last_success
        try:
            self.connection.arm(lease.last_success, self.vitals.expires)
            self.vitals.check_late((yield from now()))
            if self.vitals.failure is not None:
                raise self.vitals.failure
            assert self._renewal is not None
            if self._renewal.aborted:
                raise Aborted(reason="joining was given up")
        except LeaseholdError:
            with suppress(WatchdogUnavailable):
                self.connection.disarm()
            yield from host_lease.release(lease, timing)
            raise
        self.lease = lease
        self._note_due()
        self._tell({"what": "joined", **self.state()})
        # no lease of a resource is known here, so nothing asks what this host is as a member
        yield from keep_renewing(lease, cast("Member", None), self.vitals, self)

    def _progress(self, _what: str, _seconds: float) -> None:
        pass

    def _ended(self, failure: BaseException | None) -> None:
        message: Message = {"what": "ended", "space": self.number}
        if failure is not None:
            message["error"] = pack_error(failure)
        self._tell(message)

    def release(self) -> None:
        """Give the host id back, if it is surely ours and nothing of us is under way. By a thread of its own."""
        lease, renewal = self.lease, self._renewal
        if lease is None or renewal is None or renewal.is_alive():
            return
        if self.vitals.failure is None and self.vitals.trouble is None and lease.certain:
            with suppress(DiskError), Engine(capacity=_CAPACITY) as engine:
                engine.run(host_lease.release(lease, self.vitals.timing), AbortSignal())

    def close(self) -> None:
        with suppress(WatchdogUnavailable):
            self.connection.close()
        self.views.close()

    # --- what keep_renewing has carried out ---

    def examine(self, view: memoryview, at: float) -> Observation:
        self._tell({"what": "examined", "space": self.number, "view": self.views.put(view), "at": at})
        return _NOTHING

    def renewed(self, renewal: Renewal, expires: float) -> None:
        assert self.lease is not None
        started = self.lease.last_success - renewal.read_seconds
        self._jitter.note(started - self._due)
        self._note_due()
        trouble = None
        if self._may_feed():
            try:
                self.connection.renew(self.vitals.last_success, expires)
            except WatchdogUnavailable as refusal:
                trouble = pack_error(refusal)
        self._tell(
            {
                "what": "renewed",
                "space": self.number,
                "last_success": self.vitals.last_success,
                "timestamp": renewal.timestamp,
                "read": renewal.read_seconds,
                "write": renewal.write_seconds,
                "healed": renewal.healed is not None,
                "trouble": trouble,
                "late": self._jitter.counts,
            }
        )

    def _note_due(self) -> None:
        assert self.lease is not None
        self._due = self.lease.last_success + self.vitals.timing.renewal_interval + RENEWAL_PAUSE

    def renewal_failed(self, error: LeaseholdError) -> None:
        failed = self.vitals.failure is not None
        if failed:
            with suppress(WatchdogUnavailable):  # what it was told before then stays in force
                self.connection.renew(self.vitals.last_success, self.vitals.expires)
        self._tell(
            {
                "what": "failed",
                "space": self.number,
                "error": pack_error(error),
                "dead": failed,
                "success": self.vitals.last_success,
            }
        )

    def held(self) -> Iterable[Held]:
        """The daemon has the leases, and looks at them when it sees that this host stood still."""
        return ()

    def lost(self, held: Held, reason: LeaseholdError) -> None:
        raise AssertionError("no lease is known here")

    # the guard stands in the daemon

    def warn(self, seconds: float) -> None: ...

    def recovery(self, reason: LeaseholdError) -> None: ...

    def holders(self) -> list[Holder]:
        return []

    def stop(self, holder: Holder, how: Stop) -> None: ...
