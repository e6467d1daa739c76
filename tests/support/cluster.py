"""A lockspace and a lease in memory, with hosts that join, renew and see each other."""

from __future__ import annotations

import random
from dataclasses import dataclass

from paxos import host_lease
from paxos.geometry import MIB, Geometry, Place
from paxos.host_lease import Beacon, HostLease, Renewal
from paxos.lease_area import LeaseArea
from paxos.liveness import HostTable, LockspaceArea, Member, Observation
from paxos.records import fresh_lockspace, fresh_resource
from paxos.timing import Timing
from tests.support.memory import MemoryWorld


@dataclass
class Host:
    """One host: its delta lease, its view of the others, its membership."""

    world: MemoryWorld
    lease: HostLease
    member: Member
    timing: Timing
    seen: Observation | None = None

    def renew(self, beacon: Beacon | None = None) -> Renewal:
        def examine(view: memoryview, now: float) -> None:
            self.seen = self.member.hosts.observe(view, now)

        renewal: Renewal = self.world.run(host_lease.renew(self.lease, self.timing, beacon or Beacon(), examine))
        return renewal


class Cluster:
    """Lockspace "LS" at 0, leases "r0", "r1", ... in the areas after it, on the disk "d"."""

    def __init__(
        self, geometry: Geometry | None = None, leases: int = 1, num_hosts: int = 0, io_timeout: int = 1
    ) -> None:
        self.geometry = geometry or Geometry(512, MIB)
        self.timing = Timing(io_timeout)
        align = self.geometry.align_size
        self.world = MemoryWorld(d=align * (1 + leases))
        self.area = LockspaceArea(b"LS", Place("d", 0), self.geometry)
        disk = self.world.disks["d"]
        whole, first = fresh_lockspace(b"LS", self.geometry, io_timeout)
        disk[: len(whole)] = whole
        disk[: len(first)] = first
        self.leases = []
        for number in range(leases):
            name = b"r%d" % number
            offset = align * (1 + number)
            disk[offset : offset + align] = fresh_resource(b"LS", name, self.geometry, num_hosts)
            self.leases.append(LeaseArea(b"LS", name, Place("d", offset), self.geometry))
        self.lease = self.leases[0]

    def join(self, host_id: int, name: bytes | None = None) -> Host:
        owner = name or b"host%d" % host_id
        lease = self.world.run(host_lease.acquire(self.area, host_id, owner, self.timing))
        table = HostTable(self.area, host_id, self.timing)
        member = Member(self.area, host_id, lease.generation, self.timing, table, random.Random(host_id))
        return Host(self.world, lease, member, self.timing)
