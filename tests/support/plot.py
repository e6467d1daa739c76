"""What a story is about: a volume, its hosts, and what has been told of them so far."""

from __future__ import annotations

from dataclasses import dataclass

from paxos import index as index_module
from paxos.geometry import MIB, Geometry, Place
from paxos.index import Index
from paxos.lease_area import LeaseArea
from paxos.lockspace_area import LockspaceArea
from paxos.records import fresh_lockspace, fresh_resource
from paxos.steps import Read, Write
from tests.support import disk_lines
from tests.support.cast import Host, Use
from tests.support.stage import Stage, What

LOCKSPACE = b"LS"
#: places for leases behind an index
ROOM = 4


@dataclass(frozen=True)
class Volume:
    """What is laid out before a story begins."""

    leases: int = 1
    hosts: int = 8
    sectors: int = 512
    io_timeout: int = 1
    index: bool = False

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.sectors, MIB)


class Story:
    """A volume, its hosts, and what has been told so far."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        geometry = volume.geometry
        align = geometry.align_size
        areas = 1 + volume.leases + (2 + ROOM if volume.index else 0)
        self.stage = Stage(areas * align, self.what)
        self.area = LockspaceArea(LOCKSPACE, Place("d", 0), geometry)
        self.disk = self.stage.disks["d"]
        self.lay_out_lockspace()
        self.leases: dict[str, LeaseArea] = {}
        for lease in range(volume.leases):
            name, at = f"r{lease}", align * (1 + lease)
            self.disk[at : at + align] = fresh_resource(LOCKSPACE, name.encode(), geometry, volume.hosts)
            self.leases[name] = LeaseArea(LOCKSPACE, name.encode(), Place("d", at), geometry)
        self.index: Index | None = None
        if volume.index:
            self._lay_out_index(Place("d", align * (1 + volume.leases)))
        self.hosts: dict[str, Host] = {}
        self.old_disk: bytes | None = None
        self.lines: list[str] = []
        #: what must never happen, and did
        self.violations: list[str] = []
        self._highest: dict[LeaseArea, int] = {}
        self._shown: dict[str, str] = {}
        self.changes()

    def lay_out_lockspace(self) -> None:
        whole, first = fresh_lockspace(LOCKSPACE, self.volume.geometry, self.volume.io_timeout)
        self.disk[: len(whole)] = whole
        self.disk[: len(first)] = first

    def _lay_out_index(self, place: Place) -> None:
        geometry, hosts = self.volume.geometry, self.volume.hosts
        self.stage.run(index_module.format_index(LOCKSPACE, place, geometry, ROOM, hosts))
        self.index = self.stage.run(index_module.open_index(LOCKSPACE, place, 1.0))
        assert self.index is not None
        self.leases["guard"] = self.index.guard

    # --- what is told ---

    def say(self, text: str) -> None:
        self.lines.append(f"    {self.stage.time:7.2f}  {text}")

    def remark(self, text: str) -> None:
        self.lines.append(f"             {text}")

    def granted(self, host: Host, use: Use, known: bool) -> None:
        """A host was given a lease: nobody else who is running may hold it, and leasehold's versions only grow.

        `known`: it had this version before, in the other mode.
        """
        name = use.lease.name.decode()
        for other in self.hosts.values():
            for theirs in other.uses if other is not host and not other.machine.suspended else []:
                if theirs.lease == use.lease and not (theirs.held.shared and use.held.shared):
                    self.remark(f"!! two owners: {host.label} and {other.label}")
                    if not (host.reference and other.reference):
                        self.violations.append(f"{name} has two owners: {host.label} and {other.label}")
        highest = self._highest.get(use.lease, 0)
        if use.held.lver <= highest and not known:
            self.remark(f"!! lver {use.held.lver} is not new: lver {highest} was granted before")
            if not host.reference:
                self.violations.append(f"{host.label} was granted lver {use.held.lver} of {name} after {highest}")
        self._highest[use.lease] = max(highest, use.held.lver)

    def changes(self) -> list[str]:
        """The lines of the disk that are new or have changed since the last time."""
        now = dict(self.disk_lines(times=False))
        new = [f"{subject}: {line}" for subject, line in now.items() if self._shown.get(subject) != line]
        gone = [f"{subject}: blank" for subject in self._shown if subject not in now]
        self._shown = now
        return new + gone

    def disk_lines(self, times: bool) -> list[disk_lines.Line]:
        lines = list(disk_lines.host_lease_lines(self.disk, self.volume.geometry, times))
        newest = {lease.place: name for name, lease in self.leases.items()}
        for name in newest.values():
            lines += disk_lines.lease_lines(self.disk, self.leases[name], name, self.volume.hosts)
        if self.index is not None:
            lines += disk_lines.index_lines(self.disk, self.index, range(ROOM))
        return lines

    # --- what I/O is about ---

    def what(self, step: Read | Write) -> What:
        verb = "read" if isinstance(step, Read) else "write"
        length = step.length if isinstance(step, Read) else len(step.data)
        geometry = self.volume.geometry
        place, at = divmod(step.offset, geometry.align_size)
        whole = length == geometry.align_size
        if place == 0:
            return What(verb, "", "lockspace" if whole else f"id {at // geometry.sector_size + 1}")
        if self.index is not None and step.offset - at == self.index.place.offset:
            return What(verb, "index", "area" if whole else "header" if at == 0 and length == 4096 else "entries")
        return What(verb, self._name_of(step.offset - at), _record(geometry, at, length))

    def _name_of(self, offset: int) -> str:
        for name, lease in reversed(self.leases.items()):
            if lease.place.offset == offset:
                return name
        assert self.index is not None
        return f"place {self.index.number(offset)}"


def _record(geometry: Geometry, at: int, length: int) -> str:
    sector = at // geometry.sector_size
    if length == geometry.align_size:
        return "area"
    if length != geometry.sector_size:
        return "blocks"
    if geometry.has_lvb and at == geometry.lvb_offset:
        return "value"
    return {0: "leader", 1: "request"}.get(sector, f"block {sector - 1}")
