"""Owning a host id: taking it, proving life, giving it back (ondisk.md section 4).

The invariant: while a host id has an owner, nobody else writes its sector; a change of owner takes `host_dead`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from paxos import host_lease
from paxos.errors import (
    Aborted,
    BadRecord,
    DiskError,
    HostIdBusy,
    HostIdInvalid,
    IOTimeout,
    LeaderChecksumError,
    LeaderFlagsError,
    LeaderMagicError,
    LeaderVersionError,
    LockspaceNameError,
    RenewDiff,
    RenewOwner,
    SectorSizeError,
    SizesInvalid,
)
from paxos.geometry import MAX_HOSTS, MIB, Geometry, Place
from paxos.host_lease import Beacon, HostLease
from paxos.records import Leader, bitmap_hosts, name_of
from paxos.steps import Read, Sleep, Write
from paxos.timing import Timing
from tests.paxos.golden import image
from tests.support.cluster import Cluster, Host

GEOMETRIES = [pytest.param(Geometry(*sizes), id=f"{sizes[0]}-{sizes[1] // MIB}M") for sizes in MAX_HOSTS]
DEAD = Timing(1).host_dead


def sector_of(cluster: Cluster, host_id: int) -> bytes:
    return cluster.bytes_of(cluster.geometry.delta_offset(host_id), cluster.geometry.sector_size)


def record_of(cluster: Cluster, host_id: int) -> Leader:
    return Leader.unpack(sector_of(cluster, host_id))


def put(cluster: Cluster, host_id: int, record: Leader) -> None:
    at = cluster.geometry.delta_offset(host_id)
    cluster.world.disks["d"][at : at + 200] = record.pack()


def writes(cluster: Cluster) -> list[tuple[str, int, int]]:
    return [io for io in cluster.world.io if io[0] == "W"]


# --- the I/O of each operation (10.2) ---


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("which", ["first", "last"])
def test_joining_reads_and_writes_only_the_own_sector(geometry: Geometry, which: str) -> None:
    """10.2: "R own, W own, pause 2*other_io, R own"; ours looks twice before it writes."""
    host_id = 1 if which == "first" else geometry.max_hosts
    cluster = Cluster(geometry)
    cluster.world.io.clear()
    cluster.join(host_id)
    at, size = (host_id - 1) * geometry.sector_size, geometry.sector_size
    assert [io for io in cluster.world.io if io[0] == "R"] == [("R", at, size)] * 3
    assert [io[0] for io in cluster.world.io] == ["R", "R", "W", "R"]
    assert writes(cluster) == [("W", at, size)]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_renewal_reads_the_area_and_writes_the_own_sector(geometry: Geometry) -> None:
    """10.2: "one renewal: R 0+1M, W (h-1)*512+512"."""
    cluster = Cluster(geometry)
    host = cluster.join(geometry.max_hosts)
    cluster.world.io.clear()
    host.renew()
    size = geometry.sector_size
    assert cluster.world.io == [("R", 0, geometry.align_size), ("W", (geometry.max_hosts - 1) * size, size)]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_leaving_is_one_write(geometry: Geometry) -> None:
    """10.2: "rem_lockspace: W (h-1)*512+512"."""
    cluster = Cluster(geometry)
    host = cluster.join(2)
    cluster.world.io.clear()
    cluster.world.run(host_lease.release(host.lease, host.timing))
    assert cluster.world.io == [("W", geometry.sector_size, geometry.sector_size)]


# --- against the reference's bytes ---


def evened(sector: bytes) -> bytes:
    """With every timestamp that is not 0 as 1, and the checksum for that."""
    record = Leader.unpack(sector)
    assert record.checksum == record.computed_checksum
    return record.changed(timestamp=min(1, record.timestamp)).into(sector)


def like(name: str, host_id: int) -> tuple[bytes, Cluster]:
    """A host's sector in a golden image, and an empty cluster like the one it was made in."""
    golden = image(name)
    geometry = golden.geometry
    at = geometry.delta_offset(host_id)
    sector = golden.data[at : at + geometry.sector_size]
    record = Leader.unpack(sector)
    cluster = Cluster(geometry, name=name_of(record.space_name), io_timeout=record.io_timeout or 10)
    return sector, cluster


@pytest.mark.parametrize(
    ("name", "host_id", "host_name"),
    [
        ("ls_512_1m_two_joined", 1, b"hostA"),
        ("ls_512_1m_two_joined", 2, b"hostB"),
        ("ls_4k_1m_host1_joined", 1, None),
        ("ls_4k_8m_host2000_joined", 2000, None),
    ],
)
def test_a_joined_host_s_sector_is_the_reference_s_byte_for_byte(
    name: str, host_id: int, host_name: bytes | None
) -> None:
    sector, cluster = like(name, host_id)
    owner = host_name or name_of(Leader.unpack(sector).resource_name)
    host = cluster.join(host_id, owner)
    host.renew()
    assert evened(sector_of(cluster, host_id)) == evened(sector)


def test_a_host_that_left_and_joined_again_is_the_reference_s_byte_for_byte() -> None:
    left, cluster = like("ls_512_1m_host1_left", 1)
    host = cluster.join(1, b"hostA")
    host.renew()
    cluster.world.run(host_lease.release(host.lease, host.timing))
    assert evened(sector_of(cluster, 1)) == evened(left)
    back = image("ls_512_1m_host1_rejoined").data[:512]
    host = cluster.join(1, b"hostA")
    host.renew()
    assert evened(sector_of(cluster, 1)) == evened(back)


def test_a_taken_host_id_keeps_the_tail_of_the_old_name_as_the_reference_does() -> None:
    """1.3: "only 'new name + one NUL' is stored over the old field, the old tail survives"."""
    taken = image("ls_512_1m_hostid2_taken").data[512:1024]
    record = Leader.unpack(taken)
    cluster = Cluster(name=name_of(record.space_name), io_timeout=3)
    cluster.join(2, b"hostB-with-a-long-name")
    host = cluster.join(2, b"hostC", timing=Timing(record.io_timeout))
    host.renew()
    assert evened(sector_of(cluster, 2)) == evened(taken)
    assert host.lease.name == b"hostC"


# --- taking a host id ---


def test_the_first_generation_is_one_and_each_joining_raises_it() -> None:
    cluster = Cluster()
    for generation in (1, 2, 3):
        host = cluster.join(1)
        assert host.lease.generation == generation == record_of(cluster, 1).owner_generation


def test_a_free_id_takes_two_io_timeouts_of_the_last_owner() -> None:
    """4.2: "a lockspace initialised with io 10 and joined with io 1 still takes 20 s for the first join"."""
    cluster = Cluster(io_timeout=10)
    start = cluster.world.time
    cluster.join(1, timing=Timing(1))
    assert cluster.world.time - start == 20
    assert record_of(cluster, 1).io_timeout == 1
    start = cluster.world.time
    cluster.join(1, timing=Timing(10))
    assert cluster.world.time - start == 2


def test_the_same_name_need_not_wait_for_its_own_death() -> None:
    """4.2 step 3: "Same name means same machine, so the old instance cannot still be running"."""
    cluster = Cluster()
    cluster.join(1, b"me")
    start = cluster.world.time
    assert cluster.join(1, b"me").lease.generation == 2
    assert cluster.world.time - start == 2


def test_another_name_waits_until_the_owner_is_dead_by_the_owner_s_io_timeout() -> None:
    """4.2: "foreign dead id with stored io 3: 84 s + 6 s"."""
    cluster = Cluster(io_timeout=3)
    cluster.join(1, b"dead")
    start = cluster.world.time
    host = cluster.join(1, b"new", timing=Timing(1))
    assert cluster.world.time - start == (8 * 3 + 60) + 2 * 3
    assert host.lease.generation == 2


def test_a_name_of_48_bytes_is_cut_and_so_never_its_own_successor() -> None:
    """1.3: "no fast re-acquire"... unless both are cut alike, as here."""
    cluster = Cluster()
    host = cluster.join(1, b"x" * 60)
    assert host.lease.name == b"x" * 47
    start = cluster.world.time
    cluster.join(1, b"x" * 60)
    assert cluster.world.time - start == 2


def test_an_owner_that_renews_meanwhile_keeps_its_id() -> None:
    cluster = Cluster()
    owner = cluster.join(1, b"owner")
    cluster.keep_alive(owner)
    before = record_of(cluster, 1).owner_generation
    with pytest.raises(HostIdBusy) as raised:
        cluster.join(1, b"rival")
    assert raised.value.code == -262
    assert record_of(cluster, 1).owner_generation == before and name_of(raised.value.owner_name) == b"owner"


def test_an_owner_that_leaves_meanwhile_gives_its_id_away() -> None:
    cluster = Cluster()
    owner = cluster.join(1, b"owner")
    rival = cluster.world.start(host_lease.acquire(cluster.area, 1, b"rival", cluster.timing))
    rival.until(lambda step: isinstance(step, Sleep))
    for _ in range(10):
        rival.advance()
    cluster.world.run(host_lease.release(owner.lease, owner.timing))
    assert rival.finish().generation == 2


def test_of_two_that_take_one_id_at_the_same_moment_the_last_writer_owns_it() -> None:
    """4.2 step 6: "Any competitor that passed its own check at the same moment has written by then"."""
    cluster = Cluster()
    first = cluster.world.start(host_lease.acquire(cluster.area, 1, b"first", cluster.timing))
    second = cluster.world.start(host_lease.acquire(cluster.area, 1, b"second", cluster.timing))
    first.until(lambda step: isinstance(step, Write))
    second.until(lambda step: isinstance(step, Sleep))
    first.until(lambda step: isinstance(step, Sleep))
    with pytest.raises(HostIdBusy):
        second.finish()
    assert first.finish().name == b"first"


def test_a_slot_that_changes_between_two_looks_is_busy() -> None:
    cluster = Cluster()
    owner = cluster.join(1, b"me")
    joining = cluster.world.start(host_lease.acquire(cluster.area, 1, b"me", cluster.timing))
    joining.until(lambda step: isinstance(step, Read))
    joining.advance()
    cluster.world.time += 1
    owner.renew()
    before = sector_of(cluster, 1)
    with pytest.raises(HostIdBusy):
        joining.finish()
    assert sector_of(cluster, 1) == before


@pytest.mark.parametrize("host_id", [0, -1, 2001])
def test_an_id_that_the_area_has_no_slot_for_is_refused_unread(host_id: int) -> None:
    cluster = Cluster()
    cluster.world.io.clear()
    with pytest.raises(HostIdInvalid) as raised:
        cluster.join(host_id)
    assert raised.value.code == -231 and cluster.world.io == []


def test_an_io_timeout_of_0_on_the_disk_counts_as_our_own() -> None:
    cluster = Cluster(io_timeout=2)
    put(cluster, 1, record_of(cluster, 1).changed(io_timeout=0))
    start = cluster.world.time
    cluster.join(1, timing=Timing(5))
    assert cluster.world.time - start == 10


def test_joining_calls_nobody() -> None:
    """2.3: "acquire and release write all zero"."""
    cluster = Cluster()
    host = cluster.join(1)
    host.renew(Beacon(frozenset({2, 3})))
    assert bitmap_hosts(sector_of(cluster, 1)) == [2, 3]
    host = cluster.join(1)
    assert bitmap_hosts(sector_of(cluster, 1)) == []


def test_joining_carries_an_old_event_and_leaving_keeps_the_last() -> None:
    """2.3: "Acquire carries over whatever event fields were on disk; ... release keeps the last ones"."""
    cluster = Cluster()
    host = cluster.join(1)
    host.renew(Beacon(event=(1, 7, 99)))
    cluster.world.run(host_lease.release(host.lease, host.timing))
    record = record_of(cluster, 1)
    assert (record.write_id, record.write_generation, record.write_timestamp) == (1, 7, 99)
    host = cluster.join(1)
    assert record_of(cluster, 1).write_generation == 7
    host.renew()
    assert record_of(cluster, 1).write_generation == 0


def test_joining_that_is_broken_off_while_it_settles_gives_the_id_back() -> None:
    cluster = Cluster()
    joining = cluster.world.start(host_lease.acquire(cluster.area, 1, b"me", cluster.timing))
    joining.until(lambda step: isinstance(step, Sleep))
    joining._resume(lambda: joining.protocol.throw(Aborted(reason="shut down")))
    with pytest.raises(Aborted):
        joining.finish()
    assert record_of(cluster, 1).free


def test_joining_that_is_broken_off_leaves_a_rival_its_id() -> None:
    cluster = Cluster()
    joining = cluster.world.start(host_lease.acquire(cluster.area, 1, b"me", cluster.timing))
    joining.until(lambda step: isinstance(step, Sleep))
    rival = record_of(cluster, 1).changed(resource_name=b"rival".ljust(48, b"\0"), owner_generation=2)
    put(cluster, 1, rival)
    joining._resume(lambda: joining.protocol.throw(Aborted(reason="shut down")))
    with pytest.raises(Aborted):
        joining.finish()
    assert record_of(cluster, 1) == rival


def test_the_other_hosts_sectors_are_never_touched() -> None:
    cluster = Cluster()
    before = cluster.bytes_of(0, MIB)
    host = cluster.join(5)
    host.renew(Beacon(frozenset({1})))
    cluster.world.run(host_lease.release(host.lease, host.timing))
    after = cluster.bytes_of(0, MIB)
    assert before[: 4 * 512] == after[: 4 * 512] and before[5 * 512 :] == after[5 * 512 :]


# --- what must not be believed ---

Spoil = Callable[[Leader], Leader]
DAMAGE: list[Any] = [
    pytest.param(lambda r: r.changed(magic=1), LeaderMagicError, -223, id="magic"),
    pytest.param(lambda r: r.changed(version=0x00040004), LeaderVersionError, -224, id="major version"),
    pytest.param(lambda r: r.changed(version=0x00030005), LeaderVersionError, -224, id="newer minor version"),
    pytest.param(lambda r: r.changed(space_name=b"X".ljust(48, b"\0")), LockspaceNameError, -226, id="lockspace"),
    pytest.param(lambda r: r.__class__(**{**fields(r), "checksum": 7}), LeaderChecksumError, -229, id="checksum"),
    pytest.param(lambda r: r.changed(flags=0x1000 | r.flags), LeaderFlagsError, -224, id="unknown flag"),
]


def fields(record: Leader) -> dict[str, Any]:
    return {name: getattr(record, name) for name in Leader.__slots__}


@pytest.mark.parametrize(("spoil", "error", "number"), DAMAGE)
def test_a_damaged_slot_is_not_taken_and_not_written(spoil: Spoil, error: type[BadRecord], number: int) -> None:
    cluster = Cluster()
    put(cluster, 1, spoil(record_of(cluster, 1)))
    before = cluster.bytes_of(0, MIB)
    with pytest.raises(error) as raised:
        cluster.join(1)
    assert raised.value.code == number
    assert cluster.bytes_of(0, MIB) == before


@pytest.mark.parametrize(("spoil", "error", "number"), DAMAGE)
def test_a_damaged_own_slot_is_not_renewed_over(spoil: Spoil, error: type[BadRecord], number: int) -> None:
    cluster = Cluster()
    host = cluster.join(1)
    put(cluster, 1, spoil(record_of(cluster, 1)))
    before = cluster.bytes_of(0, MIB)
    with pytest.raises(error) as raised:
        host.renew()
    assert raised.value.code == number
    assert cluster.bytes_of(0, MIB) == before


def test_a_corrupt_neighbour_disturbs_nobody() -> None:
    cluster = Cluster()
    cluster.world.disks["d"][4 * 512 + 40] ^= 0xFF
    cluster.join(4).renew()
    with pytest.raises(LeaderChecksumError):
        cluster.join(5)


def test_a_generation_that_cannot_be_raised_is_a_bad_record() -> None:
    cluster = Cluster()
    put(cluster, 1, record_of(cluster, 1).changed(owner_generation=2**64 - 1))
    with pytest.raises(BadRecord):
        cluster.join(1)


# --- probing ---


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_name_and_sizes_are_found_with_one_read_of_4096_bytes(geometry: Geometry) -> None:
    cluster = Cluster(geometry)
    cluster.world.io.clear()
    assert cluster.world.run(host_lease.probe(Place("d", 0), 1.0)) == (b"LS", geometry)
    assert cluster.world.io == [("R", 0, 4096)]


@pytest.mark.parametrize(
    ("change", "error", "number"),
    [
        ({"magic": 0}, LeaderMagicError, -223),
        ({"version": 0x00020004}, LeaderVersionError, -224),
        ({"sector_size": 1024}, SectorSizeError, -225),
        ({"flags": 0x80}, SizesInvalid, -230),
    ],
)
def test_what_is_no_lockspace_is_told_by_its_number(
    change: dict[str, int], error: type[Exception], number: int
) -> None:
    cluster = Cluster()
    put(cluster, 1, record_of(cluster, 1).changed(**change))
    with pytest.raises(error) as raised:
        cluster.world.run(host_lease.probe(Place("d", 0), 1.0))
    assert getattr(raised.value, "code", 0) == number


# --- renewing ---


def test_a_renewal_changes_the_timestamp_and_nothing_else() -> None:
    cluster = Cluster()
    host = cluster.join(1)
    before = record_of(cluster, 1)
    cluster.world.time += 2.5
    renewal = host.renew()
    assert record_of(cluster, 1) == before.changed(timestamp=int(cluster.world.time))
    assert renewal.timestamp == int(cluster.world.time) and renewal.healed is None


def test_last_success_is_the_time_before_the_write() -> None:
    """4.3 step 6: "last_success = the timestamp written (time before the write - conservative)"."""
    cluster = Cluster()
    host = cluster.join(1)

    def slow(step: Read | Write) -> str | None:
        cluster.world.time += 0.4 if isinstance(step, Read) else 5.0
        return None

    start = cluster.world.time
    cluster.world.verdict = slow
    renewal = host.renew()
    assert host.lease.last_success == start + 0.4
    assert (renewal.read_seconds, renewal.write_seconds) == pytest.approx((0.4, 5.0))


def test_a_renewal_has_host_dead_for_its_write_and_io_for_its_read() -> None:
    """4.3 step 5: "giving up earlier would gain nothing"."""
    cluster = Cluster()
    host = cluster.join(1)
    timeouts: list[tuple[str, float]] = []

    def note(step: Read | Write) -> str | None:
        timeouts.append((type(step).__name__, step.timeout))
        return None

    cluster.world.verdict = note
    host.renew()
    assert timeouts == [("Read", 1), ("Write", DEAD)]


def test_the_area_is_examined_even_if_the_write_then_fails() -> None:
    cluster = Cluster()
    host = cluster.join(1)
    cluster.world.verdict = lambda step: "fail" if isinstance(step, Write) else None
    with pytest.raises(DiskError):
        host.renew()
    assert host.member.hosts.examined


@pytest.mark.parametrize("landed", [True, False], ids=["landed", "lost"])
def test_after_a_write_in_doubt_the_sector_may_show_either(landed: bool) -> None:
    """4.3 step 4: "After a failed attempt the last write may or may not have reached the disk"."""
    cluster = Cluster()
    host = cluster.join(1)
    cluster.world.time += 2.5
    cluster.world.verdict = lambda step: "late" if isinstance(step, Write) else None
    with pytest.raises(IOTimeout):
        host.renew()
    cluster.world.verdict = lambda _step: None
    if landed:
        cluster.world.late[0].land()
    host.renew()
    host.renew()
    assert host.lease.certain


def test_a_sector_that_somebody_changed_is_a_conflict() -> None:
    """4.3 step 4: the whole 200 byte record must equal what was last written, else -261."""
    cluster = Cluster()
    host = cluster.join(1)
    put(cluster, 1, record_of(cluster, 1).changed(timestamp=5))
    with pytest.raises(RenewDiff) as raised:
        host.renew()
    assert raised.value.code == -261
    assert record_of(cluster, 1).timestamp == 5


@pytest.mark.parametrize(
    "change",
    [{"owner_id": 2}, {"owner_generation": 2}, {"resource_name": b"rival".ljust(48, b"\0")}],
    ids=["owner id", "generation", "name"],
)
def test_another_owner_in_our_sector_is_a_conflict(change: dict[str, Any]) -> None:
    """4.3 step 3: -260."""
    cluster = Cluster()
    host = cluster.join(1)
    put(cluster, 1, record_of(cluster, 1).changed(**change))
    before = sector_of(cluster, 1)
    with pytest.raises(RenewOwner) as raised:
        host.renew()
    assert raised.value.code == -260
    assert sector_of(cluster, 1) == before


def test_two_hosts_with_one_id_the_later_one_wins_and_the_earlier_one_knows() -> None:
    cluster = Cluster()
    early = cluster.join(1, b"same name")
    late = cluster.join(1, b"same name")
    with pytest.raises(RenewOwner):
        early.renew()
    late.renew()


def test_an_overdue_read_is_waited_for_before_another_is_sent() -> None:
    """4.3 step 1: "first wait for that outstanding read, ... if it completes use its data"."""
    cluster = Cluster()
    host = cluster.join(1)
    cluster.world.verdict = lambda _step: "late"
    with pytest.raises(IOTimeout):
        host.renew()
    cluster.world.verdict = lambda _step: None
    cluster.world.late[0].land()
    cluster.world.io.clear()
    host.renew()
    assert [io[0] for io in cluster.world.io] == ["W"]


def test_an_overdue_read_that_stays_away_is_abandoned_for_a_new_one() -> None:
    cluster = Cluster()
    host = cluster.join(1)
    cluster.world.verdict = lambda _step: "late"
    with pytest.raises(IOTimeout):
        host.renew()
    cluster.world.verdict = lambda _step: None
    cluster.world.io.clear()
    start = cluster.world.time
    host.renew()
    assert [io[0] for io in cluster.world.io] == ["R", "W"]
    assert cluster.world.time - start == 1, "it was waited for renewal_read_extend"
    assert host.lease.overdue is None


# --- S5: a late renewal of the owner before us ---


def taken_over(cluster: Cluster) -> tuple[Host, Host]:
    """The dead owner of host id 1, and its successor."""
    dead = cluster.join(1, b"dead")
    dead.renew()
    return dead, cluster.join(1, b"successor")


def late_renewal_of(dead: HostLease, seconds_later: int) -> Leader:
    return dead.record.changed(timestamp=dead.record.timestamp + seconds_later)


@pytest.mark.parametrize("seconds_later", [0, 2, 8])
def test_a_late_renewal_of_a_dead_predecessor_is_written_over(seconds_later: int) -> None:
    """Better than the reference, which "loses the whole lockspace to 512 old bytes" (S5)."""
    cluster = Cluster()
    dead, successor = taken_over(cluster)
    late = late_renewal_of(dead.lease, seconds_later)
    put(cluster, 1, late)
    renewal = successor.renew()
    assert renewal.healed == late
    assert record_of(cluster, 1) == successor.lease.record
    assert successor.renew().healed is None


def test_a_late_renewal_is_healed_while_our_own_last_write_is_in_doubt() -> None:
    cluster = Cluster()
    dead, successor = taken_over(cluster)
    cluster.world.verdict = lambda step: "late" if isinstance(step, Write) else None
    with pytest.raises(IOTimeout):
        successor.renew()
    cluster.world.verdict = lambda _step: None
    put(cluster, 1, late_renewal_of(dead.lease, 2))
    assert successor.renew().healed is not None
    assert record_of(cluster, 1).owner_generation == 2


def test_a_late_renewal_of_our_own_earlier_instance_is_healed() -> None:
    cluster = Cluster()
    before = cluster.join(1, b"me")
    before.renew()
    again = cluster.join(1, b"me")
    put(cluster, 1, before.lease.record)
    assert again.renew().healed == before.lease.record


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"owner_generation": 3}, "a later generation is a new owner"),
        ({"resource_name": b"stranger".ljust(48, b"\0")}, "not our predecessor"),
        ({"timestamp": 10**6}, "it would have had to renew after it was dead"),
        ({"timestamp": 1}, "older than what was seen of it"),
        ({"timestamp": 0}, "a release is no renewal"),
    ],
)
def test_what_only_looks_like_a_late_renewal_is_a_conflict(change: dict[str, Any], why: str) -> None:
    cluster = Cluster()
    dead, successor = taken_over(cluster)
    put(cluster, 1, dead.lease.record.changed(**change))
    before = sector_of(cluster, 1)
    with pytest.raises(RenewOwner):
        successor.renew()
    assert sector_of(cluster, 1) == before, why


def test_a_successor_of_a_free_slot_heals_nothing() -> None:
    """Who had left can have no renewal in flight that it had not waited for."""
    cluster = Cluster()
    gone = cluster.join(1, b"gone")
    record = gone.lease.record
    cluster.world.run(host_lease.release(gone.lease, gone.timing))
    successor = cluster.join(1, b"successor")
    put(cluster, 1, record)
    with pytest.raises(RenewOwner):
        successor.renew()


# --- leaving ---


def test_leaving_keeps_owner_and_generation_and_frees_the_id_at_once() -> None:
    cluster = Cluster()
    host = cluster.join(1, b"first")
    host.renew()
    cluster.world.run(host_lease.release(host.lease, host.timing))
    record = record_of(cluster, 1)
    assert record.free and record.owner_generation == 1 and name_of(record.resource_name) == b"first"
    start = cluster.world.time
    cluster.join(1, b"second")
    assert cluster.world.time - start == 2
