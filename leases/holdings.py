"""What this host holds in one lockspace, and what it is about to: the one table everything else asks.

    free --acquire--> BUSY --granted--> HELD --convert, release--> BUSY --> HELD, free
                       |                                            |
                       +------------ an I/O error ------------------+--> UNSETTLED --settled--> HELD, free

The table's lock is held for dictionary work only, never during I/O: the renewal thread takes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from leases.lease import Lease
from paxos.errors import AlreadyHeld, LeaseholdError, TryAgain, WriteUnsettled
from paxos.lease_area import LeaseArea
from paxos.resource import Held
from paxos.steps import Pending, Steps, Write


class Phase(Enum):
    BUSY = "busy"
    HELD = "held"
    UNSETTLED = "unsettled"


@dataclass(slots=True, eq=False)
class Grip:
    """One resource on which this host has its hands. `doing` says what for, when BUSY."""

    name: bytes
    area: LeaseArea
    phase: Phase
    doing: str
    #: as it is on the disk; None until granted
    held: Held | None = None
    #: one exclusive user, or any number of shared ones of the same disk lease
    leases: list[Lease] = field(default_factory=list)
    #: unsettled: own I/O that may still happen
    in_flight: list[Pending] = field(default_factory=list)
    #: unsettled: the protocol that brings the resource back to a known state, made anew for each try
    cure: Callable[[], Steps[None]] | None = None
    #: the host stood still while an operation was under way: what the operation found may be outdated
    suspect: LeaseholdError | None = None

    @property
    def text(self) -> str:
        return _text(self.name)

    def writes_in_flight(self) -> list[Pending]:
        """The own writes that may still happen. An overdue read changes nothing."""
        return [one for one in self.in_flight if isinstance(one.step, Write) and not getattr(one, "landed", False)]


class Holdings:
    """By resource name, as bytes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._grips: dict[bytes, Grip] = {}

    def begin(self, area: LeaseArea, doing: str, shared: bool = False) -> Grip:
        """Get our hands on a resource: a new BUSY grip, or the HELD one of a shared lease that is to be shared.

        Raises AlreadyHeld, TryAgain, WriteUnsettled.
        """
        with self._lock:
            grip = self._grips.get(area.name)
            if grip is None:
                grip = self._grips[area.name] = Grip(area.name, area, Phase.BUSY, doing)
                return grip
            if grip.phase is Phase.UNSETTLED:
                raise WriteUnsettled(resource=area.name)
            if grip.phase is Phase.BUSY:
                raise TryAgain(reason=f"{_text(area.name)} is being {grip.doing} on this host already")
            held = grip.held
            if shared and held is not None and held.shared and held.lease.place == area.place:
                return grip
            raise AlreadyHeld(resource=area.name, holders=[pid for lease in grip.leases for pid in lease.holders])

    def attach(self, grip: Grip, lease: Lease) -> bool:
        """One more user of a shared lease. False when it is not HELD any more."""
        with self._lock:
            if grip.phase is not Phase.HELD or self._grips.get(grip.name) is not grip:
                return False
            grip.leases.append(lease)
            return True

    def grant(self, grip: Grip, held: Held, lease: Lease | None = None) -> None:
        """BUSY becomes HELD."""
        with self._lock:
            grip.held, grip.phase, grip.area = held, Phase.HELD, held.lease
            if lease is not None:
                grip.leases.append(lease)

    def work_on(self, grip: Grip, lease: Lease, doing: str) -> None:
        """HELD becomes BUSY. Raises TryAgain, WriteUnsettled, and AlreadyHeld if others share it here."""
        with self._lock:
            self._require_idle(grip)
            if grip.leases != [lease]:
                raise AlreadyHeld(resource=grip.name, holders=[pid for one in grip.leases for pid in one.holders])
            grip.phase, grip.doing = Phase.BUSY, doing

    def let_go(self, grip: Grip, lease: Lease) -> bool:
        """Take `lease` off. True: it was the last one, the grip is BUSY now and is to be released on the disk.

        Raises TryAgain while another operation is under way. Of an unsettled grip it only takes it off.
        """
        with self._lock:
            if grip.phase is Phase.BUSY:
                raise TryAgain(reason=f"{_text(grip.name)} is being {grip.doing}")
            if lease in grip.leases:
                grip.leases.remove(lease)
            if grip.leases or grip.phase is Phase.UNSETTLED or self._grips.get(grip.name) is not grip:
                return False
            grip.phase, grip.doing = Phase.BUSY, "released"
            return True

    def unsettle(self, grip: Grip, in_flight: list[Pending], cure: Callable[[], Steps[None]]) -> None:
        """It is not known what is on the disk."""
        with self._lock:
            grip.phase, grip.cure = Phase.UNSETTLED, cure
            grip.in_flight.extend(in_flight)

    def settled(self, grip: Grip, cure: Callable[[], Steps[None]] | None) -> bool:
        """`cure` has come to its end. False if there is another one by now, which is to be run."""
        with self._lock:
            if grip.cure is not cure:
                return False
            grip.cure = None
            if grip.leases:
                grip.phase = Phase.HELD
            else:
                self._grips.pop(grip.name, None)
            return True

    def drop(self, grip: Grip) -> None:
        """Our hands are off."""
        with self._lock:
            if self._grips.get(grip.name) is grip:
                del self._grips[grip.name]

    def grips(self) -> list[Grip]:
        with self._lock:
            return list(self._grips.values())

    def in_motion(self) -> bool:
        """Whether an operation is under way, or what one left open is not settled: own writes may still come."""
        return any(grip.phase is not Phase.HELD for grip in self.grips())

    def unsettled(self) -> list[Grip]:
        return [grip for grip in self.grips() if grip.phase is Phase.UNSETTLED]

    def leases(self) -> list[Lease]:
        """Every lease that a user has, lost ones included."""
        with self._lock:
            return [lease for grip in self._grips.values() for lease in grip.leases]

    def _require_idle(self, grip: Grip) -> None:
        if grip.phase is Phase.UNSETTLED:
            raise WriteUnsettled(resource=grip.name)
        if grip.phase is Phase.BUSY:
            raise TryAgain(reason=f"{_text(grip.name)} is being {grip.doing}")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
