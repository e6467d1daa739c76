"""A membership whose host lease is renewed, and whose watchdog is fed, by the keeper process.

Leases, the guard and the ladder are here as in any program; only the renewal thread is elsewhere. What it read of the
other hosts lies in shared memory and is examined here; when that shows that this host stood still, the leases are
looked at here too.
"""

from __future__ import annotations

import mmap
import os
import threading
from contextlib import suppress

from leases import events
from leases.aborting import passing_on
from leases.daemon.keeper_link import KeeperGone, KeeperLink, KeptConnection, KeptWatchdog
from leases.engines import Engines
from leases.keeper.decisions import check_leases
from leases.keeper.messages import Message, text, unpack_error
from leases.membership import Membership
from paxos.disk.abort import AbortSignal
from paxos.errors import Aborted, InvalidUse, LeaseholdError
from paxos.host_lease import Beacon, Progress
from paxos.lockspace_area import LockspaceArea
from paxos.timing import Timing


class RemoteRenewal:
    """The renewal thread, as it looks from here."""

    def __init__(self, link: KeeperLink, number: int) -> None:
        self._link = link
        self._number = number
        self.ended = threading.Event()
        self.aborted = False

    def abort(self, reason: str) -> None:
        """Never waits."""
        self.aborted = True
        threading.Thread(target=self._abort, args=(reason,), daemon=True).start()

    def _abort(self, reason: str) -> None:
        with suppress(KeeperGone):
            self._link.call("abort", space=self._number, reason=reason)

    def is_alive(self) -> bool:
        return not self.ended.is_set()

    def join(self, timeout: float | None = None) -> None:
        self.ended.wait(timeout)


class KeptMembership(Membership):
    def __init__(
        self,
        area: LockspaceArea,
        host_id: int,
        owner_name: bytes,
        timing: Timing,
        watchdog: KeptWatchdog,
        link: KeeperLink,
    ) -> None:
        super().__init__(area, host_id, owner_name, timing, watchdog)
        assert isinstance(self.connection, KeptConnection)
        self.engines = Engines(kept=1)  # a daemon has many lockspaces, most of them idle
        self.number = self.connection.number
        #: renewals by how late they began, see leases/keeper/jitter.py
        self.late: list[int] = []
        self._link = link
        self._remote = RemoteRenewal(link, self.number)
        self._renewal = self._remote
        self._size = area.geometry.align_size
        self._views_fd = os.memfd_create(f"lockspace {self.number}", os.MFD_CLOEXEC)
        os.ftruncate(self._views_fd, 2 * self._size)
        self._views = mmap.mmap(self._views_fd, 2 * self._size)
        self._told: tuple[Beacon, bool] = (Beacon(), False)

    def start(self, progress: Progress, abort: AbortSignal) -> None:
        """See Membership.start; the keeper does it."""
        place, timing = self.area.place, self.timing
        try:
            self.device = self.engines.devices.open(place.disk, timing.io_timeout)
            self._link.listen_for(self.number, self)
            self._link.call(
                "join",
                fds=[self._views_fd],
                space=self.number,
                name=text(self.area.name),
                disk=place.disk,
                offset=place.offset,
                sector_size=self.area.geometry.sector_size,
                align_size=self.area.geometry.align_size,
                host_id=self.host_id,
                owner_name=text(self.owner_name),
                io_timeout=timing.io_timeout,
                fire_timeout=timing.fire_timeout,
                read_extend=timing.renewal_read_extend,
            )
            with passing_on(abort, to=self._remote.abort):
                self._began.wait()
            if self._start_failure is not None:
                raise self._start_failure
            if abort.reason is not None:
                self.leave(force=True)
                raise Aborted(reason=abort.reason)
        finally:
            if not self._joined:
                self._end()

    def attach(self) -> None:
        """Go on with a membership that the keeper has from an earlier daemon. Raises KeeperGone, what it says."""
        self.device = self.engines.devices.open(self.area.place.disk, self.timing.io_timeout)
        self._link.listen_for(self.number, self)
        try:
            state = self._link.call("attach", fds=[self._views_fd], space=self.number)
        except LeaseholdError:
            self._end()
            raise
        self._has_joined(state)
        if state["failed"]:
            self.fail(KeeperGone(template="it had failed before this daemon came"))

    # ------------------------------------------------------------------------------------- what the keeper says

    def heard(self, message: Message) -> None:
        """By the thread that reads what the keeper says: nothing here waits."""
        what = message["what"]
        if what == "joined":
            self._has_joined(message)
        elif what == "examined":
            self._examine(message["view"], message["at"])
        elif what == "renewed":
            self._renewed(message)
        elif what == "failed":
            self._failed(unpack_error(message["error"]), message["dead"], message["success"])
        elif what == "ended":
            self._renewals_ended(unpack_error(message["error"]) if "error" in message else None)

    def keeper_gone(self) -> None:
        if self._joined:
            self.fail(KeeperGone())
        self._renewals_ended(KeeperGone())

    def _has_joined(self, message: Message) -> None:
        self.vitals.last_success = message["last_success"]
        self._check_file(message["file"])
        self._is_member(message["generation"])

    def _check_file(self, file: list[int]) -> None:
        assert self.device is not None
        status = os.fstat(self.device.fd)
        if [status.st_dev, status.st_ino] != file:
            self.vitals.fail(InvalidUse(reason=f"{self.area.place.disk} is being replaced by another file"))

    def _examine(self, view: int, at: float) -> None:
        with memoryview(self._views)[view * self._size : (view + 1) * self._size] as area:
            observation = self.hands.examine(area, at)
        if observation.paused_for:
            threading.Thread(target=self._look_at_leases, args=(observation.paused_for,), daemon=True).start()

    def _look_at_leases(self, paused_for: float) -> None:
        with suppress(LeaseholdError):
            self.engines.run(check_leases(self.member, self.hands, paused_for))

    def _renewed(self, message: Message) -> None:
        self.late = message["late"]
        if self.vitals.failure is not None:
            return
        self.vitals.trouble = None
        self.vitals.last_success = message["last_success"]
        if message["trouble"] is not None:
            self.tell(events.RenewalFailed, error=unpack_error(message["trouble"]))
        self.hands.set_beacon()
        self.tell(
            events.Renewed,
            read_seconds=message["read"],
            write_seconds=message["write"],
            expires=self.vitals.expires,
            healed=message["healed"],
        )

    def _failed(self, error: LeaseholdError, dead: bool, last_success: float) -> None:
        self.vitals.trouble = error
        if dead:
            self.vitals.fail(error)
            self.vitals.last_success = last_success
        self.hands.renewal_failed(error)

    def _renewals_ended(self, failure: LeaseholdError | None) -> None:
        self._remote.ended.set()
        if not self._joined:
            self._start_failure = failure or Aborted(reason="joining was given up")
            self._began.set()

    # -------------------------------------------------------------------------------------- what it is told

    def news(self) -> tuple[int, list[int], tuple[int, int, int], bool] | None:
        """What the keeper does not know yet: what goes out with the next renewals, and whether recovery has begun."""
        now = (self.vitals.beacon, self.vitals.failure is not None)
        if now == self._told or not self._joined:
            return None
        self._told = now
        beacon, failed = now
        return self.number, sorted(beacon.hosts), beacon.event, failed

    def untold(self) -> None:
        """The last news did not reach it."""
        self._told = (Beacon(frozenset({0})), False)

    def _release_host_lease(self) -> None:
        if self.vitals.failure is None and not self.holdings.in_motion():
            with suppress(KeeperGone):
                self._link.call("release", space=self.number)

    def _end(self) -> None:
        super()._end()
        with suppress(OSError):
            os.close(self._views_fd)
        self._views_fd = -1
