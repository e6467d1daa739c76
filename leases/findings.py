"""Looking over a whole volume without changing it: what is damaged, what contradicts what, what is foreign."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paxos.area import belonging, decode_lockspace
from paxos.errors import BadRecord, LeaseCleared, LeaseholdError, ShortIO
from paxos.geometry import Geometry, Place
from paxos.index import Entries, Index, open_index, read_entries
from paxos.index_records import ENTRY_LENGTH, IndexEntry
from paxos.lease_area import LeaseArea, survey
from paxos.lockspace_area import LockspaceArea
from paxos.records import DELTA_MAGIC, Leader, Request, name_of, verify_paxos
from paxos.steps import Steps, read
from paxos.timing import DEFAULT_IO_TIMEOUT


class Severity(Enum):
    #: worth knowing
    NOTE = "note"
    #: something is wrong that keeps no host from working
    WARNING = "warning"
    #: hosts can't work with it, or must not
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """`place` is where on the disk, `what` is wrong, `advice` is what to do about it (may be empty)."""

    severity: Severity
    place: Place
    what: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.severity.value}: {self.place}: {self.what}"


_TIMEOUT = DEFAULT_IO_TIMEOUT


def check_volume(area: LockspaceArea, index_place: Place) -> Steps[list[Finding]]:
    """Every finding, in the order of the disk. Raises DiskError where the disk itself does not answer."""
    findings = yield from _check_hosts(area)
    try:
        index = yield from open_index(area.name, index_place, _TIMEOUT)
    except (BadRecord, ShortIO) as error:
        advice = "" if isinstance(error, ShortIO) else error.advice
        return [*findings, Finding(Severity.WARNING, index_place, f"no index can be used: {error}", advice)]
    return findings + (yield from _check_index(area, index))


# ------------------------------------------------------------------------------------------------ host leases


def _check_hosts(area: LockspaceArea) -> Steps[list[Finding]]:
    view = yield from read(area.place.disk, area.place.offset, area.geometry.align_size, _TIMEOUT)
    rows = decode_lockspace(view, area.geometry)
    return list(_host_findings(area, rows))


def _host_findings(area: LockspaceArea, rows: NDArray[Any]) -> Iterator[Finding]:
    ours = belonging(rows, area.name)
    for row in np.flatnonzero(~(ours & rows["checksum_ok"])).tolist():
        place = Place(area.place.disk, area.place.at(area.geometry.delta_offset(row + 1)))
        yield Finding(Severity.ERROR, place, f"host id {row + 1}: {_what_is_wrong(rows[row], bool(ours[row]))}",
                      "this host id can't be used; others can")  # fmt: skip
    good = ours & rows["checksum_ok"]
    wrong_id = good & rows["used"] & (rows["owner_id"] != np.arange(1, len(rows) + 1)) & (rows["owner_id"] != 0)
    for row in np.flatnonzero(wrong_id).tolist():
        place = Place(area.place.disk, area.place.at(area.geometry.delta_offset(row + 1)))
        yield Finding(Severity.ERROR, place, f"host id {row + 1}: its record is that of host {rows[row]['owner_id']}",
                      "a sector was written to the wrong place")  # fmt: skip
    names: dict[bytes, int] = {}
    for row in np.flatnonzero(good & (rows["timestamp"] != 0)).tolist():
        name = name_of(bytes(rows[row]["resource_name"]))
        if name in names:
            place = Place(area.place.disk, area.place.at(area.geometry.delta_offset(row + 1)))
            what = f"host ids {names[name]} and {row + 1} are both owned by {name.decode(errors='backslashreplace')}"
            yield Finding(Severity.WARNING, place, what, "hosts need different names")
        names.setdefault(name, row + 1)


def _what_is_wrong(row: Any, ours: bool) -> str:
    if row["magic"] != DELTA_MAGIC:
        return f"no delta lease (magic {int(row['magic']):#x})"
    if not ours:
        return f"it belongs to lockspace {name_of(bytes(row['space_name'])).decode(errors='backslashreplace')}"
    return "its checksum is wrong"


# ------------------------------------------------------------------------------------------- index and leases


def _check_index(area: LockspaceArea, index: Index) -> Steps[list[Finding]]:
    entries = yield from read_entries(index, _TIMEOUT)
    findings = list(_entry_findings(index, entries))
    if index.geometry != area.geometry:
        what = f"the index has other sizes ({index.geometry}) than the lockspace ({area.geometry})"
        findings.append(Finding(Severity.WARNING, index.place, what))
    findings += yield from _check_lease(index.guard)
    for number in range(index.max_resources):
        name = entries.names.get(number)
        place = Place(index.place.disk, index.offset(number))
        if name is not None:
            findings += yield from _check_lease(index.lease(name, number))
            continue
        try:
            findings += yield from _check_unused(index, place)
        except ShortIO:
            what = f"the volume ends here: the index could name {index.max_resources - number} leases more"
            findings.append(Finding(Severity.NOTE, place, what))
            break
    return findings


def _entry_findings(index: Index, entries: Entries) -> Iterator[Finding]:
    first: dict[bytes, int] = {}
    for number, name in sorted(entries.names.items()):
        at = index.geometry.index_entry_offset(number)
        place = Place(index.place.disk, index.place.at(at))
        text = name.decode(errors="backslashreplace")
        if name in first:
            yield Finding(Severity.ERROR, place, f"entries {first[name]} and {number} are both named {text}",
                          "only the first is found by its name; rename or delete one")  # fmt: skip
        first.setdefault(name, number)
        stored = IndexEntry.unpack(entries.area[at : at + ENTRY_LENGTH]).res_offset
        if stored != index.offset(number):
            what = f"entry {number} ({text}) states offset {stored}, its position means {index.offset(number)}"
            yield Finding(Severity.WARNING, place, what, "rebuild the index")


def _check_lease(lease: LeaseArea) -> Steps[list[Finding]]:
    text = lease.name.decode(errors="backslashreplace")
    try:
        scene = yield from survey(lease, 1, _TIMEOUT)
        request = Request.unpack((yield from _request_sector(scene.lease)))
        request.verify(Place(lease.place.disk, lease.place.at(scene.lease.geometry.request_offset)))
    except (BadRecord, ShortIO) as error:
        advice = "" if isinstance(error, ShortIO) else error.advice
        return [Finding(Severity.ERROR, lease.place, f"lease {text}: {error}", advice)]
    findings = []
    if scene.leader_went_back:
        what = f"lease {text}: version {scene.leader.lver} was written late over version {scene.top_lver - 1}"
        findings.append(Finding(Severity.WARNING, lease.place, what, "the next acquire puts it right"))
    beyond = [host_id for host_id in scene.blocks if host_id > scene.leader.num_hosts]
    if beyond:
        what = f"lease {text} is for {scene.leader.num_hosts} hosts, but host {beyond[0]} has used it"
        findings.append(Finding(Severity.NOTE, lease.place, what))
    return findings


def _request_sector(lease: LeaseArea) -> Steps[bytes]:
    offset = lease.place.at(lease.geometry.request_offset)
    return bytes((yield from read(lease.place.disk, offset, lease.geometry.sector_size, _TIMEOUT)))


def _check_unused(index: Index, place: Place) -> Steps[list[Finding]]:
    """A place that no entry names: there should be no sound lease in it."""
    view = yield from read(place.disk, place.offset, index.geometry.sector_size, _TIMEOUT)
    leader = Leader.unpack(view)
    try:
        verify_paxos(leader, place, index.lockspace, leader.resource_name, None)
    except LeaseCleared:
        return []
    except BadRecord:
        foreign = any(view)
        return [Finding(Severity.NOTE, place, "foreign data in a place of the index")] if foreign else []
    except LeaseholdError as error:
        return [Finding(Severity.NOTE, place, str(error))]
    name = name_of(leader.resource_name).decode(errors="backslashreplace")
    return [Finding(Severity.WARNING, place, f"there is a lease {name} that the index does not name",
                    "rebuild the index, or create a lease over it")]  # fmt: skip


def sizes(geometry: Geometry) -> str:
    return f"{geometry.sector_size}/{geometry.align_size}"
