"""The attendant of a joined lockspace: a thread for what may take a while and must not delay a renewal.

It settles what an I/O error left open, answers other hosts' requests for leases that are held here, and looks now
and then whether the volume is still the file that others find under its path.
"""

from __future__ import annotations

import os
import stat
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from leases import events
from leases.holdings import Grip, Phase
from leases.keeper.decisions import Holder, next_stop
from leases.keeper.watchdog import boot_time
from paxos import request
from paxos.disk.abort import AbortSignal
from paxos.errors import Aborted, BadRecord, DiskError, LeaseholdError, VolumeGone
from paxos.settle import pending_of

if TYPE_CHECKING:
    from leases.membership import Membership

#: seconds between two tries to settle something
_SETTLE_PAUSE = 0.5


class Attendant:
    """Of one membership."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._thread = threading.Thread(target=self._run, name=f"attendant {membership.name}", daemon=True)
        self._wake = threading.Event()
        self._round = AbortSignal()
        self._stopping = False
        self._requests = False
        self._settle_from = 0.0

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There is something to settle: it joins in what is being settled."""
        self._settle_from = 0.0
        self._round.set("there is more to settle")
        self._wake.set()

    def look_at_requests(self) -> None:
        self._requests = True
        self._round.set("somebody asks for a lease")
        self._wake.set()

    def stop(self, patience: float) -> None:
        """It ends soon; wait up to `patience` seconds for that."""
        self._stopping = True
        self._round.set("the lockspace is being left")
        self._wake.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(patience)

    def _run(self) -> None:
        interval = self._membership.timing.renewal_interval
        while not self._stopping:
            self._round = AbortSignal()
            self._wake.clear()
            if self._requests:
                self._requests = False
                self._answer_requests()
            self._look_for_volume()
            self._membership.uses.tidy()
            unsettled = self._membership.holdings.unsettled()
            if unsettled and boot_time() >= self._settle_from:
                self._settle_from = boot_time() + _SETTLE_PAUSE
                self._settle(unsettled)
            if not self._stopping:
                self._wake.wait(_SETTLE_PAUSE if self._membership.holdings.unsettled() else interval)

    # --- settling ---

    def _settle(self, grips: list[Grip]) -> None:
        """All of them at once, since each may wait for a disk of its own."""
        cures = [(grip, grip.cure) for grip in grips]
        protocols = [cure() for _, cure in cures if cure is not None]
        with self._membership.engines.engine() as engine:
            results = engine.run_all(protocols, self._round)
        for (grip, cure), result in zip([one for one in cures if one[1] is not None], results, strict=True):
            if isinstance(result, DiskError):
                pending = pending_of(result)
                if pending is not None and pending not in grip.in_flight:
                    grip.in_flight.append(pending)
            elif result is None or (isinstance(result, BadRecord) and not grip.writes_in_flight()):
                # what is no lease any more, and will not be written by us, is nothing to settle
                if result is not None:
                    for lease in list(grip.leases):
                        lease.lost.set(result)
                if self._membership.holdings.settled(grip, cure):
                    self._membership.tell(events.Settled, resource=grip.text)
            elif not isinstance(result, LeaseholdError):
                raise result

    # --- requests of other hosts ---

    def _answer_requests(self) -> None:
        """Look at the request record of every lease that we hold (ondisk.md 7.3)."""
        membership = self._membership
        for grip in membership.holdings.grips():
            if grip.phase is not Phase.HELD or grip.held is None or grip.held.shared:
                continue
            try:
                force = membership.engines.run(request.examine(grip.held, membership.timing.io_timeout), self._round)
            except (DiskError, BadRecord, Aborted):
                continue
            if force is not request.Force.NONE:
                membership.tell(events.LeaseRequested, resource=grip.text, force=force.name)
                self._stop_users(grip, force)

    def _stop_users(self, grip: Grip, force: request.Force) -> None:
        """FORCE: SIGKILL. GRACEFUL: the kill path, else SIGTERM. Each as far as the holder allows it."""
        at = boot_time()
        kill_from = float("-inf") if force is request.Force.FORCE else float("inf")
        for pid in [pid for lease in grip.leases for pid in lease.holders]:
            user = self._membership.uses.users.get(pid)
            if user is not None:
                asked = Holder(pid, user.holder.has_kill_path, user.holder.never_kill, user.holder.never_terminate)
                how = next_stop(asked, at, kill_from)
                if how is not None:
                    self._membership.uses.users.stop(pid, how)
                    self._membership.tell(events.HolderStopped, pid=pid, how=how.value)

    # --- the volume itself ---

    def _look_for_volume(self) -> None:
        """Whoever opens the volume's path must find what we write to."""
        membership = self._membership
        path = membership.area.place.disk
        device = membership.device
        if device is None or device.is_block:
            return
        with suppress(OSError):
            gone = os.fstat(device.fd).st_nlink == 0
            with suppress(FileNotFoundError):
                there = os.stat(path)
                gone |= stat.S_ISREG(there.st_mode) and not os.path.samestat(os.fstat(device.fd), there)
            if gone:
                reason = VolumeGone(path=path, lockspace=membership.area.name, host_id=membership.host_id)
                membership.fail(reason)
