"""A lockspace and a lease in memory, with hosts that join, renew and see each other."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from leases.sim import reference
from paxos import host_lease, resource
from paxos.errors import DiskError
from paxos.geometry import MIB, Geometry, Place
from paxos.host_lease import Beacon, HostLease, Renewal
from paxos.lease_area import LeaseArea, Scene, survey
from paxos.liveness import HostTable, Member
from paxos.lockspace_area import LockspaceArea, Observation
from paxos.owners import Owner, owners
from paxos.records import Block, Leader, fresh_lockspace, fresh_resource
from paxos.resource import Held, Want
from paxos.settle import pending_of, settle
from paxos.steps import Pending, Read
from paxos.timing import Timing
from tests.support.memory import MemoryWorld


@dataclass
class Host:
    """One host: its delta lease, its view of the others, its membership.

    With `reference` it takes and releases resource leases by the reference's choices. `doubt` is what of its I/O on
    a resource is in flight, None if it has nothing to settle.
    """

    world: MemoryWorld
    lease: HostLease
    member: Member
    timing: Timing
    seen: Observation | None = None
    reference: bool = False
    doubt: list[Pending] | None = None

    @property
    def host_id(self) -> int:
        return self.member.host_id

    def renew(self, beacon: Beacon | None = None) -> Renewal:
        def examine(view: memoryview, now: float) -> None:
            self.seen = self.member.hosts.observe(view, now)

        renewal: Renewal = self.world.run(host_lease.renew(self.lease, self.timing, beacon or Beacon(), examine))
        return renewal

    def acquire(self, lease: LeaseArea, want: Want | None = None, within: float = float("inf")) -> Held:
        """Acquire; what an I/O error leaves in flight is remembered in `doubt`."""
        by = reference if self.reference else resource
        return self._tracked(by.acquire(self.member, lease, want or Want()), within)  # type: ignore[no-any-return]

    def release(self, held: Held, within: float = float("inf")) -> None:
        by = reference if self.reference else resource
        self._tracked(by.release(self.member, held), within)

    def _tracked(self, protocol: Any, within: float) -> Any:
        assert self.doubt is None, "this resource has to be settled first"
        try:
            return self.world.run(protocol, within)
        except DiskError as error:
            if not self.reference:
                pending = pending_of(error)
                self.doubt = [pending] if pending else []
            raise

    def settle(self, lease: LeaseArea, keep: Held | None = None) -> None:
        """Settle what is in doubt. Raises what `paxos.settle.settle` raises; then it is still in doubt."""
        if self.doubt is None:
            return
        try:
            self.world.run(settle(self.member, lease, self.doubt, keep))
        except DiskError as error:
            pending = pending_of(error)
            if pending and pending not in self.doubt:
                self.doubt.append(pending)
            raise
        self.doubt = None


class Cluster:
    """Lockspace "LS" at 0, leases "r0", "r1", ... in the areas after it, on the disk "d"."""

    def __init__(
        self,
        geometry: Geometry | None = None,
        leases: int = 1,
        num_hosts: int = 0,
        io_timeout: int = 1,
        name: bytes = b"LS",
    ) -> None:
        self.geometry = geometry or Geometry(512, MIB)
        self.timing = Timing(io_timeout)
        align = self.geometry.align_size
        self.world = MemoryWorld(d=align * (1 + leases))
        self.area = LockspaceArea(name, Place("d", 0), self.geometry)
        disk = self.world.disks["d"]
        whole, first = fresh_lockspace(name, self.geometry, io_timeout)
        disk[: len(whole)] = whole
        disk[: len(first)] = first
        self.leases = []
        for number in range(leases):
            resource_name = b"r%d" % number
            offset = align * (1 + number)
            disk[offset : offset + align] = fresh_resource(name, resource_name, self.geometry, num_hosts)
            self.leases.append(LeaseArea(name, resource_name, Place("d", offset), self.geometry))
        self.lease = self.leases[0]
        self.alive: list[Host] = []
        self._renewing = False

    def join(
        self, host_id: int, name: bytes | None = None, timing: Timing | None = None, reference: bool = False
    ) -> Host:
        owner = name or b"host%d" % host_id
        timing = timing or self.timing
        lease = self.world.run(host_lease.acquire(self.area, host_id, owner, timing))
        table = HostTable(self.area, host_id, timing)
        member = Member(self.area, host_id, lease.generation, timing, table, random.Random(host_id))
        return Host(self.world, lease, member, timing, reference=reference)

    def keep_alive(self, *hosts: Host) -> None:
        """From now on these hosts renew whenever time passes; the others have stopped."""
        self.alive = list(hosts)
        self.world.on_sleep = self.renew_alive
        self.renew_alive()
        self.world.pass_time(2.5)

    def renew_alive(self) -> None:
        if self._renewing:
            return
        self._renewing = True
        try:
            for host in self.alive:
                if self.world.time >= host.lease.last_success + 2 * host.timing.io_timeout:
                    host.renew()
        finally:
            self._renewing = False

    # --- what lies on the disk ---

    def scene(self, lease: LeaseArea | None = None) -> Scene:
        """One read of a lease area, by nobody in particular."""
        lease = lease or self.lease
        protocol = survey(lease, 1, 1.0)
        step = next(protocol)
        assert isinstance(step, Read)
        try:
            protocol.send(self.world.fetch(step))
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        raise AssertionError("the area has other sizes")

    def leader(self, lease: LeaseArea | None = None) -> Leader:
        return self.scene(lease).leader

    def block(self, host_id: int, lease: LeaseArea | None = None) -> Block:
        return self.scene(lease).blocks.get(host_id, Block())

    def owners(self, lease: LeaseArea | None = None) -> list[Owner]:
        return owners(self.scene(lease))

    def bytes_of(self, offset: int, length: int) -> bytes:
        return bytes(self.world.disks["d"][offset : offset + length])

    def area_bytes(self, lease: LeaseArea | None = None) -> bytes:
        return self.bytes_of((lease or self.lease).place.offset, self.geometry.align_size)
