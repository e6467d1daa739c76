"""Exclusive leases: acquire and release, I/O by I/O and byte by byte (ondisk.md 5.2, 5.5, 5.7, 10.3).

The invariant: while host h holds version v, h's own block says "v, accepted, h, not RELEASED".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from paxos import resource
from paxos.errors import (
    BadRecord,
    BallotReadFailed,
    BallotsExhausted,
    BallotWriteFailed,
    BlockChecksumError,
    DiskError,
    InvalidUse,
    LeaderChecksumError,
    LeaderFlagsError,
    LeaderMagicError,
    LeaderVersionError,
    LeaseCleared,
    LeaseHeld,
    LeaseholdError,
    LeaseOther,
    LeaseOwned,
    LockspaceNameError,
    LvbUnsupported,
    LverMismatch,
    NumHostsError,
    ReleaseOwner,
    ResourceNameError,
    SectorSizeError,
    ShortIO,
)
from paxos.geometry import MAX_HOSTS, MIB, Geometry
from paxos.lease_area import LeaseArea
from paxos.records import CLEAR_MAGIC, RELEASED, Block, Leader, fresh_resource
from paxos.resource import Want
from paxos.steps import Read, Write
from tests.paxos.comparison import without_clocks
from tests.paxos.golden import image
from tests.support.cluster import Cluster

GEOMETRIES = [pytest.param(Geometry(*sizes), id=f"{sizes[0]}-{sizes[1] // MIB}M") for sizes in MAX_HOSTS]


class Place:
    """Offsets of one lease, as 10.3 names them."""

    def __init__(self, cluster: Cluster) -> None:
        self.geometry, self.start = cluster.geometry, cluster.lease.place.offset

    def leader(self, kind: str) -> tuple[str, int, int]:
        return kind, self.start, self.geometry.sector_size

    def block(self, kind: str, host_id: int) -> tuple[str, int, int]:
        size = self.geometry.sector_size
        return kind, self.start + (host_id + 1) * size, size

    def whole(self) -> tuple[str, int, int]:
        return "R", self.start, self.geometry.align_size

    def first(self, length: int) -> tuple[str, int, int]:
        return "R", self.start, length

    def six_of_exclusive(self, host_id: int) -> list[tuple[str, int, int]]:
        block, whole = self.block("W", host_id), self.whole()
        return [whole, block, whole, block, whole, self.leader("W")]


def put_leader(cluster: Cluster, leader: Leader) -> None:
    at = cluster.lease.place.offset
    cluster.world.disks["d"][at : at + 200] = leader.pack()


def put_block(cluster: Cluster, host_id: int, block: Block) -> None:
    at = cluster.lease.place.at(cluster.geometry.block_offset(host_id))
    size = cluster.geometry.sector_size
    cluster.world.disks["d"][at : at + size] = block.sector(size)


# --- the I/O of each operation (10.3) ---


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("which", ["first", "last"])
def test_an_uncontended_acquire_is_three_reads_and_three_writes(geometry: Geometry, which: str) -> None:
    """10.3: "R 0+1M; W (h+1)*512+512; R 0+1M; W (h+1)*512+512; R 0+1M; W 0+512"."""
    host_id = 1 if which == "first" else geometry.max_hosts
    cluster = Cluster(geometry)
    host = cluster.join(host_id)
    cluster.world.io.clear()
    held = host.acquire(cluster.lease)
    assert cluster.world.io == Place(cluster).six_of_exclusive(host_id)
    assert (held.lver, held.host_id, held.generation, held.shared) == (1, host_id, 1, False)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_release_is_block_then_leader(geometry: Geometry) -> None:
    """10.3: "W (h+1)*512+512; R 0+512; W 0+512"."""
    cluster = Cluster(geometry)
    host = cluster.join(3)
    held = host.acquire(cluster.lease)
    cluster.world.io.clear()
    host.release(held)
    place = Place(cluster)
    assert cluster.world.io == [place.block("W", 3), place.leader("R"), place.leader("W")]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(("num_hosts", "sectors"), [(1, 4), (2, 4), (3, 8), (6, 8), (7, 16), (200, 256)])
def test_a_small_num_hosts_makes_ballots_read_less(geometry: Geometry, num_hosts: int, sectors: int) -> None:
    """10.3 with num_hosts 3: "R 0+4096", the next power of two of the sectors needed."""
    cluster = Cluster(geometry, num_hosts=num_hosts)
    host = cluster.join(1)
    cluster.world.io.clear()
    host.acquire(cluster.lease)
    place = Place(cluster)
    some = place.first(min(sectors * geometry.sector_size, geometry.align_size))
    block = place.block("W", 1)
    assert cluster.world.io == [place.whole(), block, some, block, some, place.leader("W")]


@pytest.mark.parametrize("sizes", [(512, MIB), (4096, 8 * MIB)])
def test_a_value_block_is_written_before_anything_is_given_up(sizes: tuple[int, int]) -> None:
    """10.3: "[W 1025024+512 if LVB set;]" first; 5.5 step 1."""
    cluster = Cluster(Geometry(*sizes))
    host = cluster.join(1)
    held = host.acquire(cluster.lease)
    cluster.world.io.clear()
    cluster.world.run(resource.release(host.member, held, lvb=b"value"))
    assert cluster.world.io[0] == ("W", cluster.lease.place.at(2002 * sizes[0]), sizes[0])
    assert cluster.world.run(resource.read_lvb(cluster.lease, 1.0)) == b"value".ljust(sizes[0], b"\0")


def test_acquiring_our_older_instance_s_lease_waits_for_nobody() -> None:
    """5.2 case 4: "our older instance: go B, no wait"."""
    cluster = Cluster()
    cluster.join(4).acquire(cluster.lease)
    host = cluster.join(4)
    cluster.world.io.clear()
    start = cluster.world.time
    held = host.acquire(cluster.lease)
    assert cluster.world.time == start and held.generation == 2 and held.lver == 2
    assert cluster.world.io == Place(cluster).six_of_exclusive(4)


def test_a_live_owner_is_found_with_two_reads() -> None:
    """10.3: "R 0+1M; R owner's delta sector -> -243"."""
    cluster = Cluster()
    a, b = cluster.join(1), cluster.join(2)
    cluster.keep_alive(a, b)
    a.acquire(cluster.lease)
    cluster.world.io.clear()
    with pytest.raises(LeaseHeld) as raised:
        b.acquire(cluster.lease)
    assert raised.value.code == -243
    assert cluster.world.io == [Place(cluster).whole(), ("R", 0, 512)]


# --- against the reference's bytes ---


def like(name: str, **more: Any) -> tuple[bytes, Cluster]:
    """A golden area, and a cluster with a fresh lease of the same names and sizes."""
    golden = image(name)
    leader = Leader.unpack(golden.data)
    cluster = Cluster(golden.geometry, name=leader.space_name.rstrip(b"\0"), **more)
    cluster.leases[0] = cluster.lease = replace(cluster.lease, name=leader.resource_name.rstrip(b"\0"))
    put_leader(cluster, cluster_leader(cluster, leader))
    return without_clocks(golden.data, golden.geometry), cluster


def cluster_leader(cluster: Cluster, like_leader: Leader) -> Leader:
    at = cluster.lease.place.offset
    return Leader.unpack(cluster.bytes_of(at, 200)).changed(resource_name=like_leader.resource_name)


def area_of(cluster: Cluster) -> bytes:
    return without_clocks(cluster.area_bytes(), cluster.geometry)


@pytest.mark.parametrize(
    ("name", "host_id"),
    [("res_512_1m_ex_host1", 1), ("res_4k_1m_ex_host1", 1), ("res_4k_2m_ex_host7", 7), ("res_4k_8m_ex_host2000", 2000)],
)
def test_a_first_exclusive_lease_is_the_reference_s_byte_for_byte(name: str, host_id: int) -> None:
    golden, cluster = like(name)
    cluster.join(host_id).acquire(cluster.lease)
    assert area_of(cluster) == golden


def test_a_released_lease_is_the_reference_s_byte_for_byte() -> None:
    golden, cluster = like("res_512_1m_released")
    host = cluster.join(1)
    host.release(host.acquire(cluster.lease))
    assert area_of(cluster) == golden


@pytest.mark.parametrize("name", ["res_512_1m_lvb", "res_4k_8m_lvb_released"])
def test_a_released_value_block_is_the_reference_s_byte_for_byte(name: str) -> None:
    golden, cluster = like(name)
    leader = Leader.unpack(golden)
    host = cluster.join(leader.owner_id)
    at = cluster.geometry.lvb_offset
    value = golden[at : at + cluster.geometry.sector_size].rstrip(b"\0")
    held = host.acquire(cluster.lease)
    cluster.world.run(resource.release(host.member, held, lvb=value))
    assert area_of(cluster) == golden


def test_an_older_instance_s_lease_reacquired_is_the_reference_s_byte_for_byte() -> None:
    golden, cluster = like("res_512_1m_old_generation_reacquired")
    cluster.join(4).acquire(cluster.lease)
    cluster.join(4).acquire(cluster.lease)
    assert area_of(cluster) == golden


def test_a_dead_owner_s_lease_taken_over_is_the_reference_s_byte_for_byte() -> None:
    golden, cluster = like("res_512_1m_takeover")
    cluster.join(2).acquire(cluster.lease)
    host = cluster.join(1)
    host.renew()
    cluster.world.time += 70
    host.renew()
    host.acquire(cluster.lease)
    assert area_of(cluster) == golden


def test_what_the_reference_left_by_contention_is_understood() -> None:
    """res_512_1m_contended_other_writer_held: owner 2, written by 1, and 2's block begins the next ballot."""
    golden = image("res_512_1m_contended_other_writer_held")
    leader = Leader.unpack(golden.data)
    cluster = Cluster(golden.geometry, name=leader.space_name.rstrip(b"\0"))
    cluster.lease = replace(cluster.lease, name=leader.resource_name.rstrip(b"\0"))
    at = cluster.lease.place.offset
    cluster.world.disks["d"][at : at + len(golden.data)] = golden.data
    hosts = [cluster.join(number) for number in (1, 2, 3)]
    cluster.keep_alive(*hosts)
    assert cluster.owners(cluster.lease) == [], "it reads as owned, but its owner has gone on to the next version"
    assert hosts[2].acquire(cluster.lease).lver > leader.lver


def test_a_lease_that_the_reference_wrote_is_acquired_and_released() -> None:
    for name in ("res_512_1m_released", "res_512_1m_sh_released", "res_512_1m_fresh", "res_512_1m_name48"):
        golden = image(name)
        leader = Leader.unpack(golden.data)
        cluster = Cluster(golden.geometry, name=leader.space_name.rstrip(b"\0"))
        cluster.lease = replace(cluster.lease, name=leader.resource_name.rstrip(b"\0"))
        at = cluster.lease.place.offset
        cluster.world.disks["d"][at : at + len(golden.data)] = golden.data
        host = cluster.join(9)
        held = host.acquire(cluster.lease)
        assert held.lver == leader.lver + 1
        host.release(held)
        assert cluster.leader().free and cluster.leader().lver == held.lver


# --- what a lease says while it is held, and after ---


def test_while_held_the_own_block_says_so() -> None:
    cluster = Cluster()
    held = cluster.join(1).acquire(cluster.lease)
    block = cluster.block(1)
    assert block.accepted and not block.released
    assert (block.lver, block.value[:2]) == (held.lver, (1, 1))
    leader = cluster.leader()
    assert (leader.owner_id, leader.owner_generation, leader.lver) == (1, 1, 1) and not leader.free


def test_a_release_keeps_the_block_s_values_and_the_last_owner() -> None:
    """5.5: "The dblock values must stay"; 2.2: "After a release the owner fields keep the last owner"."""
    cluster = Cluster()
    host = cluster.join(1)
    held = host.acquire(cluster.lease)
    block = cluster.block(1)
    host.release(held)
    assert cluster.block(1) == block.changed(flags=RELEASED)
    leader = cluster.leader()
    assert leader.free and (leader.owner_id, leader.lver) == (1, 1)


def test_versions_grow_by_one_with_each_uncontended_acquire() -> None:
    cluster = Cluster()
    hosts = [cluster.join(1), cluster.join(2)]
    cluster.keep_alive(*hosts)
    lvers = []
    for turn in range(6):
        held = hosts[turn % 2].acquire(cluster.lease)
        lvers.append(held.lver)
        hosts[turn % 2].release(held)
    assert lvers == [1, 2, 3, 4, 5, 6]


def test_bytes_that_are_no_record_s_survive_in_leader_and_block_sectors() -> None:
    cluster = Cluster()
    disk, at = cluster.world.disks["d"], cluster.lease.place.offset
    disk[at + 300 : at + 304] = b"tail"
    disk[at + 1024 + 60 : at + 1024 + 64] = b"gap."
    host = cluster.join(1)
    host.release(host.acquire(cluster.lease))
    assert disk[at + 300 : at + 304] == b"tail" and disk[at + 1024 + 60 : at + 1024 + 64] == b"gap."


def test_a_request_is_left_alone() -> None:
    golden = image("res_512_1m_request")
    cluster = Cluster()
    at = cluster.lease.place.offset + 512
    cluster.world.disks["d"][at : at + 512] = golden.data[512:1024]
    host = cluster.join(1)
    host.release(host.acquire(cluster.lease))
    assert cluster.bytes_of(at, 512) == golden.data[512:1024]


def test_a_release_can_rename() -> None:
    cluster = Cluster()
    host = cluster.join(1)
    held = host.acquire(cluster.lease)
    cluster.world.run(resource.release(host.member, held, new_name=b"other"))
    renamed = replace(cluster.lease, name=b"other")
    assert host.acquire(renamed).lver == 2
    with pytest.raises(ResourceNameError):
        host.acquire(cluster.lease)


# --- wanted versions ---


def test_a_wanted_version_must_be_the_current_one() -> None:
    """5.2 case 1: -240."""
    cluster = Cluster()
    host = cluster.join(1)
    host.release(host.acquire(cluster.lease))
    before = cluster.area_bytes()
    for wanted in (0, 2):
        with pytest.raises(LverMismatch) as raised:
            host.acquire(cluster.lease, Want(lver=wanted))
        assert (raised.value.code, raised.value.lver) == (-240, 1)
    assert cluster.area_bytes() == before
    assert host.acquire(cluster.lease, Want(lver=1)).lver == 2


@pytest.mark.parametrize("back_by", [1, 2, 3])
def test_a_wanted_version_is_not_compared_with_a_leader_that_a_late_write_set_back(back_by: int) -> None:
    """Fencing: whoever wants version 1 must not get version 5 because the leader says 1 again."""
    cluster = Cluster()
    a, b = cluster.join(1), cluster.join(2)
    cluster.keep_alive(a, b)
    leaders = []
    for turn in range(4):
        host = (a, b)[turn % 2]
        host.release(host.acquire(cluster.lease))
        leaders.append(cluster.leader())
    put_leader(cluster, leaders[3 - back_by])
    with pytest.raises(LverMismatch) as raised:
        a.acquire(cluster.lease, Want(lver=4 - back_by))
    assert raised.value.lver == 4
    for _ in range(3):
        try:
            assert a.acquire(cluster.lease, Want(lver=4)).lver == 5
            break
        except LeaseOther:
            continue
    else:
        raise AssertionError("never acquired")


# --- num_hosts (5.7) ---


def test_a_host_beyond_num_hosts_is_refused_until_another_lets_it_in() -> None:
    """5.7: "A host whose id exceeds leader.num_hosts gets -228"."""
    cluster = Cluster(num_hosts=3)
    small, large = cluster.join(3), cluster.join(8)
    cluster.keep_alive(small, large)
    with pytest.raises(NumHostsError) as raised:
        large.acquire(cluster.lease)
    assert raised.value.code == -228
    held = small.acquire(cluster.lease, Want(num_hosts=8))
    assert cluster.leader().num_hosts == 8
    small.release(held)
    assert large.acquire(cluster.lease).lver == 2


@pytest.mark.parametrize("num_hosts", [0, -1, 2001])
def test_num_hosts_is_bounded_by_the_area(num_hosts: int) -> None:
    """5.7: "The reference does not check it against max_hosts; implementations must"."""
    cluster = Cluster()
    host = cluster.join(1)
    before = cluster.area_bytes()
    with pytest.raises(InvalidUse):
        host.acquire(cluster.lease, Want(num_hosts=num_hosts))
    assert cluster.area_bytes() == before


def test_num_hosts_never_shrinks() -> None:
    """A host's block that is read no more would not count in ballots."""
    cluster = Cluster(num_hosts=8)
    host = cluster.join(1)
    held = host.acquire(cluster.lease, Want(num_hosts=3))
    assert cluster.leader().num_hosts == 8
    host.release(held)


def test_a_block_beyond_num_hosts_counts_nevertheless() -> None:
    """A late leader write may have set num_hosts back too."""
    cluster = Cluster(num_hosts=8)
    high, low = cluster.join(8), cluster.join(1)
    cluster.keep_alive(high, low)
    fresh = cluster.leader()
    high.acquire(cluster.lease)
    put_leader(cluster, fresh.changed(num_hosts=3, lver=0))
    with pytest.raises(LeaseOther) as raised:
        low.acquire(cluster.lease)
    assert raised.value.owner_host == 8


# --- what must not be believed ---


def damaged(record: Leader) -> Leader:
    return replace(record, checksum=record.checksum ^ 1)


Spoil = Callable[[Leader], Leader]
BAD_LEADERS: list[Any] = [
    pytest.param(lambda r: r.changed(magic=CLEAR_MAGIC), LeaseCleared, -223, id="cleared"),
    pytest.param(lambda r: r.changed(magic=0x12212010), LeaderMagicError, -223, id="magic"),
    pytest.param(lambda r: r.changed(version=0x00070004), LeaderVersionError, -224, id="major version"),
    pytest.param(lambda r: r.changed(version=0x00060005), LeaderVersionError, -224, id="newer minor version"),
    pytest.param(lambda r: r.changed(space_name=b"X".ljust(48, b"\0")), LockspaceNameError, -226, id="lockspace"),
    pytest.param(lambda r: r.changed(resource_name=b"X".ljust(48, b"\0")), ResourceNameError, -227, id="resource"),
    pytest.param(lambda r: r.changed(num_hosts=0), NumHostsError, -228, id="num_hosts too small"),
    pytest.param(lambda r: r.changed(num_hosts=2001), BadRecord, -201, id="num_hosts too large"),
    pytest.param(damaged, LeaderChecksumError, -229, id="checksum"),
    pytest.param(lambda r: r.changed(flags=r.flags | 0x100), LeaderFlagsError, -224, id="unknown flag"),
    pytest.param(lambda r: r.changed(sector_size=1024), SectorSizeError, -225, id="sector size"),
    pytest.param(lambda r: r.changed(flags=0x80), BadRecord, -201, id="sizes that are no pair"),
    pytest.param(lambda r: r.changed(lver=2**64 - 1), BadRecord, -201, id="a version that can't be raised"),
    pytest.param(lambda r: r.changed(owner_id=3000, timestamp=5), BadRecord, -201, id="an owner of no slot"),
    pytest.param(lambda r: r.changed(owner_id=0, timestamp=5), BadRecord, -201, id="an owner that is none"),
]


@pytest.mark.parametrize(("spoil", "error", "number"), BAD_LEADERS)
def test_a_bad_leader_is_a_typed_error_and_nothing_is_written(
    spoil: Spoil, error: type[BadRecord], number: int
) -> None:
    cluster = Cluster()
    host = cluster.join(1)
    put_leader(cluster, spoil(cluster.leader()))
    before = cluster.area_bytes()
    with pytest.raises(error) as raised:
        host.acquire(cluster.lease)
    assert raised.value.code == number and isinstance(raised.value, BadRecord)
    assert cluster.area_bytes() == before


@pytest.mark.parametrize(("spoil", "error", "number"), BAD_LEADERS[:12])
def test_a_bad_leader_is_not_released_over(spoil: Spoil, error: type[BadRecord], number: int) -> None:
    cluster = Cluster()
    host = cluster.join(1)
    held = host.acquire(cluster.lease)
    put_leader(cluster, spoil(cluster.leader()))
    at = cluster.lease.place.offset
    before = cluster.bytes_of(at, 512)
    try:
        host.release(held)
    except LeaseholdError as raised:
        assert raised.code in (number, -251)
    assert cluster.bytes_of(at, 512) == before


BAD_BLOCKS: list[Any] = [
    pytest.param(lambda b: replace(b, checksum=b.checksum ^ 1), id="checksum"),
    pytest.param(lambda b: replace(b, mbal=b.mbal + 2000), id="a torn number"),
    pytest.param(lambda b: b.changed(mbal=6), id="another host's number"),
    pytest.param(lambda b: b.changed(mbal=2**64 - 1993 + 0), id="a number that can't be raised"),
    pytest.param(lambda b: b.changed(lver=2**64 - 1), id="a version that can't be raised"),
]


@pytest.mark.parametrize("spoil", BAD_BLOCKS)
@pytest.mark.parametrize("victim", [1, 7], ids=["own", "another's"])
def test_a_bad_block_of_any_host_stops_an_acquire(spoil: Callable[[Block], Block], victim: int) -> None:
    """13 item 3: "Ignoring a corrupt block in a ballot is unsafe in principle ...: stay with -214 in both"."""
    cluster = Cluster()
    cluster.join(victim).acquire(cluster.lease)
    host = cluster.join(1)
    put_block(cluster, victim, spoil(cluster.block(victim)))
    before = cluster.area_bytes()
    with pytest.raises(BlockChecksumError) as raised:
        host.acquire(cluster.lease)
    assert raised.value.code == -214
    assert cluster.area_bytes() == before


def test_a_block_that_turns_bad_during_the_ballot_stops_it() -> None:
    """Better than the reference, which ignores it there."""
    cluster = Cluster()
    host = cluster.join(1)
    running = cluster.world.start(resource.acquire(host.member, cluster.lease))
    running.until(lambda step: isinstance(step, Write))
    put_block(cluster, 7, Block(mbal=7, lver=1, checksum=3))
    with pytest.raises(BlockChecksumError):
        running.finish()
    assert cluster.bytes_of(cluster.lease.place.offset + 32, 8) == bytes(8), "no leader was written"


def test_the_golden_damaged_leases_are_refused_with_the_reference_s_numbers() -> None:
    for name, number in (("res_512_1m_corrupt_leader", -229), ("res_512_1m_corrupt_dblock", -214)):
        golden = image(name)
        leader = Leader.unpack(golden.data)
        cluster = Cluster(golden.geometry, name=leader.space_name.rstrip(b"\0"))
        lease = replace(cluster.lease, name=leader.resource_name.rstrip(b"\0"))
        at = lease.place.offset
        cluster.world.disks["d"][at : at + len(golden.data)] = golden.data
        with pytest.raises(BadRecord) as raised:
            cluster.join(1).acquire(lease)
        assert raised.value.code == number
        assert cluster.area_bytes(lease) == golden.data


def test_a_lease_of_other_sizes_than_its_lockspace_is_read_by_its_own() -> None:
    """Better than the reference, which ends with -214 (13 item 2)."""
    cluster = Cluster(Geometry(512, MIB))
    other = Geometry(4096, MIB)
    at = cluster.lease.place.offset
    cluster.world.disks["d"][at : at + MIB] = fresh_resource(b"LS", b"r0", other)
    host = cluster.join(5)
    held = host.acquire(cluster.lease)
    assert held.lease.geometry == other
    assert Block.unpack(cluster.bytes_of(at + 6 * 4096, 512)).value[:2] == (5, 1)
    host.release(held)
    with pytest.raises(NumHostsError):
        cluster.join(251).acquire(cluster.lease)


def test_an_area_beyond_the_end_of_the_disk_is_a_short_io() -> None:
    cluster = Cluster()
    beyond = LeaseArea(b"LS", b"r9", replace(cluster.lease.place, offset=5 * MIB), cluster.geometry)
    with pytest.raises(ShortIO) as raised:
        cluster.join(1).acquire(beyond)
    assert raised.value.code == -90


@pytest.mark.parametrize("sizes", [(4096, MIB), (4096, 2 * MIB), (4096, 4 * MIB)])
def test_a_value_block_outside_its_area_is_refused(sizes: tuple[int, int]) -> None:
    """13 item 1: "refuse"; the reference writes it into another lease's area."""
    cluster = Cluster(Geometry(*sizes), leases=8)
    host = cluster.join(1)
    held = host.acquire(cluster.lease)
    before = bytes(cluster.world.disks["d"])
    for steps in (
        resource.read_lvb(cluster.lease, 1.0),
        resource.write_lvb(cluster.lease, b"v", 1.0),
        resource.release(host.member, held, lvb=b"v"),
    ):
        with pytest.raises(LvbUnsupported):
            cluster.world.run(steps)
    assert bytes(cluster.world.disks["d"]) == before


def test_a_value_block_longer_than_a_sector_is_refused() -> None:
    cluster = Cluster()
    with pytest.raises(InvalidUse):
        cluster.world.run(resource.write_lvb(cluster.lease, bytes(513), 1.0))


# --- which error an I/O failure is ---


@pytest.mark.parametrize(
    ("which", "error", "number"),
    [
        (1, DiskError, -5),
        (2, BallotWriteFailed, -211),
        (3, BallotReadFailed, -210),
        (4, BallotWriteFailed, -211),
        (5, BallotReadFailed, -210),
        (6, DiskError, -5),
    ],
)
def test_an_io_error_is_told_by_where_it_struck(which: int, error: type[DiskError], number: int) -> None:
    """5.2: "I/O failure of the block write -> -211, of the read -> -210"."""
    cluster = Cluster()
    host = cluster.join(1)
    count = 0

    def verdict(step: Read | Write) -> str | None:
        nonlocal count
        count += 1
        return "fail" if count == which else None

    cluster.world.verdict = verdict
    with pytest.raises(error) as raised:
        host.acquire(cluster.lease)
    assert raised.value.code == number


# --- losing a lease ---


def test_releasing_what_another_host_has_taken_is_told_and_changes_nothing() -> None:
    """5.5 step 3: -251, unless somebody else wrote the leader for us."""
    cluster = Cluster()
    host = cluster.join(1)
    held = host.acquire(cluster.lease)
    changed = cluster.leader().changed(timestamp=12345)
    put_leader(cluster, changed)
    with pytest.raises(ReleaseOwner) as raised:
        host.release(held)
    assert raised.value.code == -251
    assert cluster.leader() == changed


def test_a_leader_that_a_competitor_wrote_is_not_touched_by_a_release() -> None:
    """5.5 step 3: "a write could clobber a newer leader"."""
    cluster = Cluster()
    host = cluster.join(1)
    held = host.acquire(cluster.lease)
    by_another = cluster.leader().changed(write_id=2)
    put_leader(cluster, by_another)
    cluster.world.io.clear()
    host.release(held)
    assert cluster.leader() == by_another and cluster.block(1).released
    assert [io[0] for io in cluster.world.io] == ["W", "R"]


def test_a_late_leader_of_an_earlier_version_is_put_right_by_a_release() -> None:
    cluster = Cluster()
    a, b = cluster.join(1), cluster.join(2)
    cluster.keep_alive(a, b)
    held = a.acquire(cluster.lease)
    early = cluster.leader()
    a.release(held)
    held = b.acquire(cluster.lease)
    put_leader(cluster, early)
    b.release(held)
    assert cluster.leader().lver == 2 and cluster.leader().free


@pytest.mark.parametrize("shared", [False, True])
def test_a_held_lease_is_found_to_be_still_ours(shared: bool) -> None:
    cluster = Cluster()
    host = cluster.join(1)
    held = host.acquire(cluster.lease, Want(shared=shared))
    cluster.world.run(resource.verify_held(host.member, held))


def test_a_lease_that_was_taken_over_is_found_to_be_lost() -> None:
    cluster = Cluster()
    gone = cluster.join(1)
    held = gone.acquire(cluster.lease)
    heir = cluster.join(2)
    heir.renew()
    cluster.world.time += 70
    heir.renew()
    theirs = heir.acquire(cluster.lease)
    with pytest.raises(ReleaseOwner):
        cluster.world.run(resource.verify_held(gone.member, held))
    heir.release(theirs)
    with pytest.raises(ReleaseOwner):
        cluster.world.run(resource.verify_held(gone.member, held))


def test_a_shared_lease_whose_mark_was_cleared_is_found_to_be_lost() -> None:
    cluster = Cluster()
    host = cluster.join(1)
    held = host.acquire(cluster.lease, Want(shared=True))
    put_block(cluster, 1, cluster.block(1).changed(mode_flags=0, mode_generation=0))
    with pytest.raises(ReleaseOwner):
        cluster.world.run(resource.verify_held(host.member, held))


def test_a_late_leader_write_over_ours_does_not_make_a_held_lease_look_lost() -> None:
    cluster = Cluster()
    a, b = cluster.join(1), cluster.join(2)
    cluster.keep_alive(a, b)
    held = a.acquire(cluster.lease)
    early = cluster.leader()
    a.release(held)
    held = b.acquire(cluster.lease)
    put_leader(cluster, early)
    cluster.world.run(resource.verify_held(b.member, held))


# --- giving up (13 item 6) ---


def test_ballots_have_an_end() -> None:
    """Better than the reference, which tries for ever."""
    cluster = Cluster()
    host = cluster.join(1)
    rival = 2

    def outbid(step: Read | Write) -> str | None:
        nonlocal rival
        if isinstance(step, Write) and step.offset == cluster.lease.place.at(cluster.geometry.block_offset(1)):
            rival += 4000
            put_block(cluster, 2, Block().changed(mbal=rival, lver=1))
        return None

    cluster.world.verdict = outbid
    with pytest.raises(BallotsExhausted) as raised:
        cluster.world.run(resource.acquire(host.member, cluster.lease), within=3600)
    assert raised.value.code == -212


def test_a_host_that_gives_up_between_two_versions_does_not_stay_the_owner_of_the_first() -> None:
    """It decided one version for itself, and could not finish the one more."""
    cluster = Cluster()
    host, other = cluster.join(1), cluster.join(2)
    cluster.keep_alive(host, other)
    put_block(cluster, 3, Block().changed(flags=RELEASED))  # erased by a reference host: one more is needed
    rival = 3

    def outbid(step: Read | Write) -> str | None:
        nonlocal rival
        own = cluster.lease.place.at(cluster.geometry.block_offset(1))
        if isinstance(step, Write) and step.offset == own and Block.unpack(step.data).lver == 2:
            rival += 4000
            put_block(cluster, 3, Block().changed(mbal=rival, lver=2))
        return None

    cluster.world.verdict = outbid
    with pytest.raises(BallotsExhausted):
        host.acquire(cluster.lease, within=3600)
    cluster.world.verdict = lambda _step: None
    assert cluster.owners() == []
    for _ in range(3):
        try:
            other.acquire(cluster.lease)
            break
        except LeaseholdError:
            cluster.world.pass_time(3)
    else:
        raise AssertionError("nobody can have it")


def test_a_host_that_finds_another_s_decision_says_whose() -> None:
    cluster = Cluster()
    a, b = cluster.join(1), cluster.join(2)
    cluster.keep_alive(a, b)
    running = cluster.world.start(resource.acquire(a.member, cluster.lease))
    running.until(lambda step: isinstance(step, Write) and step.offset == cluster.lease.place.offset)
    with pytest.raises(LeaseOther) as raised:
        b.acquire(cluster.lease)
    assert (raised.value.code, raised.value.owner_host, raised.value.generation) == (-245, 1, 1)
    held = running.finish()
    assert held.lver == 1
    a.release(held)


def test_a_host_that_was_overtaken_is_told_who_owns_it() -> None:
    """5.2 B1: "T.lver == next_lver: ... Other owner -> -244"."""
    cluster = Cluster()
    a, b = cluster.join(1), cluster.join(2)
    cluster.keep_alive(a, b)
    running = cluster.world.start(resource.acquire(a.member, cluster.lease))
    own = cluster.lease.place.at(cluster.geometry.block_offset(1))
    running.until(lambda step: isinstance(step, Write) and step.offset == own)
    b.acquire(cluster.lease)
    with pytest.raises(LeaseOwned) as raised:
        running.finish()
    assert (raised.value.code, raised.value.owner_host) == (-244, 2)


def test_a_host_that_was_overtaken_by_one_that_gave_it_back_already_is_not_refused() -> None:
    """Better than the reference, which says -244 though the lease is free."""
    cluster = Cluster()
    a, b = cluster.join(1), cluster.join(2)
    cluster.keep_alive(a, b)
    running = cluster.world.start(resource.acquire(a.member, cluster.lease))
    own = cluster.lease.place.at(cluster.geometry.block_offset(1))
    running.until(lambda step: isinstance(step, Write) and step.offset == own)
    b.release(b.acquire(cluster.lease))
    assert running.finish().lver == 2
