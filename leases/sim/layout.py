"""What lies where on the simulated disk: a lockspace area at byte 0, then an area for each resource lease."""

from __future__ import annotations

from dataclasses import dataclass

from leases.sim.disk import SimDisk
from leases.sim.world import World
from paxos.geometry import MIB, Geometry, Place
from paxos.records import fresh_lockspace, fresh_resource

_GEOMETRY = Geometry(512, MIB)


@dataclass(frozen=True, slots=True)
class Layout:
    """`leases` resources named r1, r2, ... of `num_hosts` host slots in use each."""

    leases: int
    num_hosts: int
    io_timeout: int
    disk: str = "disk"
    lockspace: bytes = b"sim"
    geometry: Geometry = _GEOMETRY

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return (1 + self.leases) * self.geometry.align_size

    @property
    def lockspace_place(self) -> Place:
        return Place(self.disk, 0)

    def name(self, number: int) -> bytes:
        """The name of resource `number`, 1 based."""
        return f"r{number}".encode()

    def place(self, number: int) -> Place:
        return Place(self.disk, number * self.geometry.align_size)

    def make(self, world: World, *, remember_s: float = 0.0) -> SimDisk:
        """A disk laid out anew."""
        disk = SimDisk(world, self.disk, self.size, self.geometry.sector_size, remember_s=remember_s)
        self.lay_out(disk)
        return disk

    def lay_out(self, disk: SimDisk) -> None:
        """Write everything anew, at once, over whatever is there."""
        for area in range(self.leases + 1):
            self.lay_out_area(disk, area)

    def lay_out_area(self, disk: SimDisk, area: int) -> None:
        """Write one area anew: 0 is the lockspace, n resource n."""
        if area == 0:
            image, first = fresh_lockspace(self.lockspace, self.geometry, self.io_timeout)
            disk.put(0, image)
            disk.put(0, first)
        else:
            image = fresh_resource(self.lockspace, self.name(area), self.geometry, self.num_hosts)
            disk.put(area * self.geometry.align_size, image)

    def where(self, offset: int) -> tuple[int, int]:
        """Area (0 is the lockspace, n resource n) and sector in it of a disk offset."""
        area, rest = divmod(offset, self.geometry.align_size)
        return area, rest // self.geometry.sector_size
