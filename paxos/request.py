"""Asking another host for its lease: the request record, and honouring it (ondisk.md section 7).

A request says "I want version n of this lease". Its owner looks when the asking host's bit for it is set in the
asker's bitmap (`Beacon`), and if it holds an older version exclusively, signals the holder.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from paxos.errors import RequestOld, RequestSuperseded
from paxos.lease_area import LeaseArea, read_leader
from paxos.records import Request
from paxos.resource import Held
from paxos.steps import Steps, read, write


class Force(IntEnum):
    """What the owner is asked to do to its holder."""

    NONE = 0
    #: kill it
    FORCE = 1
    #: ask it: its kill path, else SIGTERM
    GRACEFUL = 2


@dataclass(frozen=True, slots=True)
class Asked:
    """A request was written (or there was no need). `owner`: the host to point out in the bitmap, 0 = nobody."""

    owner: int
    generation: int


def request(lease: LeaseArea, lver: int | None, force: Force, timeout: float) -> Steps[Asked]:
    """Ask for version `lver` of a lease (None: the next one). lver 0 with Force.NONE clears the request.

    Raises RequestOld, RequestSuperseded, BadRecord, DiskError.
    """
    clearing = lver == 0 and force is Force.NONE
    owner = generation = 0
    if not clearing:
        leader, _ = yield from read_leader(lease, timeout)
        if leader.free:
            return Asked(0, 0)
        wanted = leader.lver + 1 if lver is None else lver
        if leader.lver >= wanted:
            raise RequestOld(resource=lease.name, lver=leader.lver, wanted=wanted)
        owner, generation = leader.owner_id, leader.owner_generation
    else:
        wanted = 0
    pending, sector = yield from read_request(lease, timeout)
    if not clearing and pending.lver > wanted:
        raise RequestSuperseded(resource=lease.name, wanted=wanted, pending_lver=pending.lver)
    place = lease.sector_place(lease.geometry.request_offset)
    record = Request(lver=wanted, force_mode=force)
    yield from write(place.disk, place.offset, record.into(sector), timeout)
    return Asked(owner, generation)


def read_request(lease: LeaseArea, timeout: float) -> Steps[tuple[Request, bytes]]:
    """The verified request record and a copy of its sector."""
    place = lease.sector_place(lease.geometry.request_offset)
    view = yield from read(place.disk, place.offset, lease.geometry.sector_size, timeout)
    sector = bytes(view)
    record = Request.unpack(sector)
    record.verify(place)
    return record, sector


def examine(held: Held, timeout: float) -> Steps[Force]:
    """What others ask of a lease that we hold: Force.NONE, or how to treat its holder.

    Better than the reference (13 item 13), which killed itself by this: shared holders are never asked, satisfied
    requests are ignored.
    """
    record, _ = yield from read_request(held.lease, timeout)
    if held.shared or record.lver <= held.lver or record.force_mode not in (Force.FORCE, Force.GRACEFUL):
        return Force.NONE
    return Force(record.force_mode)
