"""The resource index: names to places, changed under its guarding lease, never pointing at what is no lease."""

from __future__ import annotations

from dataclasses import replace

import pytest

from paxos import index as index_module
from paxos import resource
from paxos.errors import (
    BadRecord,
    BlockChecksumError,
    HeldElsewhere,
    IndexFull,
    IndexLockspaceError,
    IndexMagicError,
    IndexNameError,
    IndexOffsetError,
    IndexVersionError,
    InvalidUse,
    IOTimeout,
    LeaderFlagsError,
    LeaderVersionError,
    LeaseCleared,
    LeaseHeld,
    NameTaken,
    NoSuchLease,
)
from paxos.geometry import MAX_HOSTS, MIB, Geometry, Place
from paxos.index import Index
from paxos.index_records import IndexEntry, IndexHeader
from paxos.lease_area import LeaseArea
from paxos.records import Leader, fresh_resource
from paxos.resource import Want
from paxos.steps import Read, Write
from tests.paxos.comparison import without_padding
from tests.paxos.golden import image
from tests.support.cluster import Cluster, Host

GEOMETRIES = [pytest.param(Geometry(*sizes), id=f"{sizes[0]}-{sizes[1] // MIB}M") for sizes in MAX_HOSTS]
SMALL = Geometry(512, MIB)


class Volume(Cluster):
    """A lockspace at 0, an index at one area's size with its guard behind it, room for four leases."""

    def __init__(self, geometry: Geometry = SMALL, room: int = 4, max_resources: int = 0, name: bytes = b"LS") -> None:
        super().__init__(geometry, leases=2 + room, name=name)
        align = geometry.align_size
        self.world.disks["d"][align:] = bytes((2 + room) * align)
        self.place = Place("d", align)
        self.world.run(index_module.format_index(name, self.place, geometry, max_resources))
        self.formatted = list(self.world.io)
        self.index: Index = self.world.run(index_module.open_index(name, self.place, 1.0))

    def create(self, host: Host, name: bytes, num_hosts: int = 0) -> LeaseArea:
        lease: LeaseArea = self.world.run(index_module.create(host.member, self.index, name, num_hosts))
        return lease

    def delete(self, host: Host, name: bytes) -> None:
        self.world.run(index_module.delete(host.member, self.index, name))

    def lookup(self, name: bytes | None = None, offset: int | None = None) -> tuple[bytes, int]:
        found: tuple[bytes, int] = self.world.run(index_module.lookup(self.index, 1.0, name, offset))
        return found

    def entries(self) -> dict[int, bytes]:
        found: dict[int, bytes] = self.world.run(index_module.read_entries(self.index, 1.0)).names
        return found

    def set_entry(self, host: Host, offset: int, name: bytes) -> None:
        self.world.run(index_module.set_entry(host.member, self.index, offset, name))

    def rebuild(self, host: Host) -> dict[int, bytes]:
        found: dict[int, bytes] = self.world.run(index_module.rebuild(host.member, self.index)).names
        return found

    def write_leader(self, lease: LeaseArea, leader: Leader) -> None:
        self.world.disks["d"][lease.place.offset : lease.place.offset + 200] = leader.pack()


@pytest.fixture
def volume() -> Volume:
    return Volume()


@pytest.fixture
def host(volume: Volume) -> Host:
    host = volume.join(1)
    host.renew()
    return host


# --- laying out and opening ---


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_formatting_writes_the_index_then_its_guard(geometry: Geometry) -> None:
    """10.7: "W rindex 1M; W lease 1M"; no locking."""
    align = geometry.align_size
    assert Volume(geometry).formatted == [("W", align, align), ("W", 2 * align, align)]


@pytest.mark.parametrize("name", ["rindex_512_1m_formatted", "rindex_4k_8m_formatted"])
def test_a_formatted_index_is_the_reference_s_byte_for_byte(name: str) -> None:
    golden = image(name)
    lockspace = golden.records("rindex_header")[0]["lockspace_name"].encode()
    volume = Volume(golden.geometry, room=0, name=lockspace)
    align, request = golden.geometry.align_size, golden.geometry.align_size + golden.geometry.request_offset
    whole = without_padding(golden.data, request) if len(golden.data) > align else golden.data  # one is the index only
    assert volume.bytes_of(align, len(whole)) == whole


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_sizes_of_an_index_are_read_from_its_header(geometry: Geometry) -> None:
    assert Volume(geometry).index.geometry == geometry


@pytest.mark.parametrize(
    ("change", "error", "number"),
    [
        ({"magic": 1}, IndexMagicError, -274),
        ({"version": 0x00020001}, IndexVersionError, -275),
        ({"lockspace_name": b"other".ljust(48, b"\0")}, IndexLockspaceError, -276),
        ({"rx_offset": 0}, IndexOffsetError, -277),
    ],
)
def test_a_header_that_is_not_right_is_told_by_its_number(
    volume: Volume, change: dict[str, object], error: type[BadRecord], number: int
) -> None:
    disk, at = volume.world.disks["d"], volume.place.offset
    header = IndexHeader.unpack(bytes(disk[at : at + 80]))
    disk[at : at + 80] = replace(header, **change).pack()  # type: ignore[arg-type]
    with pytest.raises(error) as raised:
        volume.world.run(index_module.open_index(b"LS", volume.place, 1.0))
    assert raised.value.code == number


def test_a_header_cannot_claim_more_entries_than_fit(volume: Volume) -> None:
    disk, at = volume.world.disks["d"], volume.place.offset
    header = IndexHeader.unpack(bytes(disk[at : at + 80]))
    disk[at : at + 80] = replace(header, max_resources=0xFFFFFFFF).pack()
    assert volume.world.run(index_module.open_index(b"LS", volume.place, 1.0)).max_resources == 16000


# --- creating ---


def six_of_exclusive(geometry: Geometry, area: int, host_id: int = 1) -> list[tuple[str, int, int]]:
    sector, align = geometry.sector_size, geometry.align_size
    block = ("W", area + (host_id + 1) * sector, sector)
    everything = ("R", area, align)
    return [everything, block, everything, block, everything, ("W", area, sector)]


def full_release(geometry: Geometry, area: int, host_id: int = 1) -> list[tuple[str, int, int]]:
    """Better than the reference (13 item 5), which leaves out the first of the three."""
    sector = geometry.sector_size
    return [("W", area + (host_id + 1) * sector, sector), ("R", area, sector), ("W", area, sector)]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_creating_writes_the_lease_before_its_entry(geometry: Geometry) -> None:
    """10.7 create. "An index entry never points to an uninitialised lease." """
    volume = Volume(geometry, room=1)
    host = volume.join(1)
    host.renew()
    volume.world.io.clear()
    lease = volume.create(host, b"vm1")
    sector, align = geometry.sector_size, geometry.align_size
    assert lease.place.offset == 3 * align
    assert volume.world.io == [
        *six_of_exclusive(geometry, 2 * align),
        ("R", align, align),
        ("W", 3 * align, align),
        ("W", align + sector, sector),
        *full_release(geometry, 2 * align),
    ]


def test_a_created_lease_is_the_reference_s_byte_for_byte() -> None:
    golden = image("res_512_1m_rindex_created")
    record = golden.records("paxos_leader")[0]
    volume = Volume(name=record["space_name"].encode())
    host = volume.join(1)
    lease = volume.create(host, record["resource_name"].encode())
    assert volume.area_bytes(lease) == golden.data


def test_five_created_leases_make_the_reference_s_index_byte_for_byte() -> None:
    golden = image("rindex_512_1m_five")
    volume = Volume(room=5, name=b"RX")
    host = volume.join(1)
    for number in range(5):
        volume.create(host, b"resource-%d" % number)
    assert volume.bytes_of(MIB, MIB) == golden.data[:MIB]


def test_a_new_lease_takes_the_lowest_free_place(volume: Volume, host: Host) -> None:
    for name in (b"a", b"b", b"c"):
        volume.create(host, name)
    volume.delete(host, b"b")
    assert volume.create(host, b"d").place.offset == volume.index.offset(1)


def test_a_name_can_be_taken_once_only(volume: Volume, host: Host) -> None:
    """Better than the reference (13 item 4), which makes a second one that lookup never finds."""
    lease = volume.create(host, b"vm1")
    with pytest.raises(NameTaken) as raised:
        volume.create(host, b"vm1")
    assert raised.value.code == -17 and raised.value.offset == lease.place.offset
    assert volume.owners(volume.index.guard) == [], "the guard was not given back"


def test_a_full_index_says_so(host: Host) -> None:
    volume = Volume(room=2, max_resources=2)
    host = volume.join(1)
    volume.create(host, b"a")
    volume.create(host, b"b")
    with pytest.raises(IndexFull):
        volume.create(host, b"c")
    assert volume.owners(volume.index.guard) == []


def test_num_hosts_of_a_new_lease_is_as_asked(volume: Volume, host: Host) -> None:
    lease = volume.create(host, b"vm1", num_hosts=3)
    assert volume.leader(lease).num_hosts == 3


@pytest.mark.parametrize("name", [b"", b"x" * 49, b"a\0b"])
def test_what_is_no_name_is_refused_before_anything_is_read(volume: Volume, host: Host, name: bytes) -> None:
    volume.world.io.clear()
    with pytest.raises(InvalidUse):
        volume.create(host, name)
    assert volume.world.io == []


def test_while_another_host_changes_the_index_this_one_is_refused(volume: Volume, host: Host) -> None:
    other = volume.join(2)
    volume.keep_alive(host, other)
    guard = other.acquire(volume.index.guard)
    with pytest.raises(HeldElsewhere):
        volume.create(host, b"vm1")
    other.release(guard)
    volume.create(host, b"vm1")


# --- deleting ---


def test_deleting_zeroes_the_entry_before_the_lease(volume: Volume, host: Host) -> None:
    volume.create(host, b"vm1")
    volume.world.io.clear()
    volume.delete(host, b"vm1")
    writes = [io for io in volume.world.io if io[0] == "W" and io[1] != 2 * MIB and io[1] != 2 * MIB + 1024]
    assert writes == [("W", MIB + 512, 512), ("W", 3 * MIB, MIB)]
    assert volume.entries() == {}


def test_a_deleted_lease_is_the_reference_s_byte_for_byte() -> None:
    golden = image("res_512_1m_rindex_deleted")
    record = golden.records("paxos_leader")[0] if golden.records("paxos_leader") else golden.facts["records"][0]
    volume = Volume(name=record["space_name"].encode())
    host = volume.join(1)
    lease = volume.create(host, record["resource_name"].encode())
    volume.delete(host, record["resource_name"].encode())
    found = Leader.unpack(volume.bytes_of(lease.place.offset, 512))
    normal = found.changed(write_timestamp=record["write_timestamp"])
    assert normal.into(volume.area_bytes(lease)[:512]) + volume.area_bytes(lease)[512:] == golden.data


def test_a_deleted_lease_cannot_be_acquired(volume: Volume, host: Host) -> None:
    lease = volume.create(host, b"vm1")
    volume.delete(host, b"vm1")
    with pytest.raises(LeaseCleared) as raised:
        host.acquire(lease)
    assert raised.value.code == -223


def test_what_is_not_there_cannot_be_deleted(volume: Volume, host: Host) -> None:
    with pytest.raises(NoSuchLease):
        volume.delete(host, b"vm1")
    assert volume.owners(volume.index.guard) == []


def area_and_entry(volume: Volume, lease: LeaseArea) -> tuple[bytes, dict[int, bytes]]:
    return volume.area_bytes(lease), volume.entries()


def refused_delete(volume: Volume, host: Host, lease: LeaseArea, error: type[Exception]) -> None:
    before = area_and_entry(volume, lease)
    with pytest.raises(error):
        volume.delete(host, b"vm1")
    assert area_and_entry(volume, lease) == before
    assert volume.owners(volume.index.guard) == []


@pytest.mark.parametrize("shared", [False, True])
def test_a_lease_that_is_held_is_not_deleted(volume: Volume, host: Host, shared: bool) -> None:
    """Better than the reference (13 item 4)."""
    lease = volume.create(host, b"vm1")
    host.acquire(lease, Want(shared=shared))
    refused_delete(volume, host, lease, LeaseHeld)


def test_a_held_lease_is_not_deleted_by_a_host_that_it_has_no_block_for(volume: Volume, host: Host) -> None:
    """Laid out for one host, deleted by host 5: -228 says nothing about whether it is held."""
    lease = volume.create(host, b"vm1", num_hosts=1)
    held = host.acquire(lease)
    refused_delete(volume, volume.join(5), lease, LeaseHeld)
    host.release(held)
    volume.delete(volume.join(6), b"vm1")


def test_a_held_lease_that_was_renamed_is_not_deleted_by_its_old_name(volume: Volume, host: Host) -> None:
    lease = volume.create(host, b"vm1")
    held = host.acquire(lease)
    volume.world.run(resource.release(host.member, held, new_name=b"other"))
    renamed = LeaseArea(b"LS", b"other", lease.place, lease.geometry)
    again = host.acquire(renamed)
    before = volume.area_bytes(renamed), volume.entries()
    with pytest.raises(LeaseHeld):
        volume.delete(host, b"vm1")
    assert (volume.area_bytes(renamed), volume.entries()) == before
    host.release(again)
    volume.delete(host, b"vm1")
    assert volume.entries() == {}


@pytest.mark.parametrize(
    ("change", "error"),
    [({"flags": 0x10010}, LeaderFlagsError), ({"version": 0x00060005}, LeaderVersionError)],
)
def test_a_lease_by_rules_of_a_newer_program_is_not_deleted(
    volume: Volume, host: Host, change: dict[str, int], error: type[BadRecord]
) -> None:
    lease = volume.create(host, b"vm1")
    volume.write_leader(lease, volume.leader(lease).changed(**change))
    before = volume.area_bytes(lease)
    with pytest.raises(error):
        volume.delete(host, b"vm1")
    assert volume.area_bytes(lease) == before and volume.entries() == {0: b"vm1"}


def test_a_lease_with_a_damaged_block_is_not_deleted(volume: Volume, host: Host) -> None:
    """The block may hold a vote, or a shared mark: repair first."""
    lease = volume.create(host, b"vm1")
    host.acquire(lease)
    volume.world.disks["d"][lease.place.offset + 9 * 512] = 0xFF
    with pytest.raises(BlockChecksumError):
        volume.delete(host, b"vm1")
    assert volume.entries() == {0: b"vm1"}


def test_an_entry_for_what_is_no_lease_can_be_got_rid_of(volume: Volume, host: Host) -> None:
    lease = volume.create(host, b"vm1")
    volume.world.disks["d"][lease.place.offset : lease.place.offset + MIB] = bytes(MIB)
    volume.delete(host, b"vm1")
    assert volume.entries() == {}


# --- looking up ---


def test_looking_up_reads_the_index_once_and_locks_nothing(volume: Volume, host: Host) -> None:
    volume.create(host, b"vm1")
    volume.world.io.clear()
    assert volume.lookup(b"vm1") == (b"vm1", 3 * MIB)
    assert volume.world.io == [("R", MIB, MIB)]


def test_every_way_to_look_up(volume: Volume, host: Host) -> None:
    for name in (b"a", b"b"):
        volume.create(host, name)
    at_a, at_b, free = 3 * MIB, 4 * MIB, 5 * MIB
    assert volume.lookup(offset=at_b) == (b"b", at_b)
    assert volume.lookup(offset=free) == (b"", free)
    assert volume.lookup(b"a", at_a) == (b"a", at_a)
    assert volume.lookup() == (b"", free)
    with pytest.raises(IndexNameError) as raised:
        volume.lookup(b"a", at_b)
    assert raised.value.code == -278
    with pytest.raises(NoSuchLease):
        volume.lookup(b"c")


@pytest.mark.parametrize("offset", [0, MIB, 3 * MIB + 512, 3 * MIB + 4096 * MIB])
def test_an_offset_that_no_entry_stands_for_is_refused(volume: Volume, offset: int) -> None:
    """Better than the reference (13 item 4), which writes entry -3 as well as 4096."""
    with pytest.raises(IndexOffsetError) as raised:
        volume.lookup(offset=offset)
    assert raised.value.code == -277


def test_the_place_of_an_entry_is_believed_not_the_offset_written_in_it(volume: Volume, host: Host) -> None:
    """Section 9: "results are computed from the position, the stored res_offset is not used"."""
    volume.create(host, b"vm1")
    volume.world.disks["d"][MIB + 512 : MIB + 576] = IndexEntry.of(b"vm1", 77 * MIB).pack()
    assert volume.lookup(b"vm1") == (b"vm1", 3 * MIB)


# --- setting entries, rebuilding ---


def test_setting_an_entry_does_not_touch_the_lease(volume: Volume, host: Host) -> None:
    lease = volume.create(host, b"vm1")
    before = volume.area_bytes(lease)
    volume.set_entry(host, lease.place.offset, b"")
    assert volume.entries() == {}
    volume.set_entry(host, lease.place.offset, b"vm1")
    assert volume.entries() == {0: b"vm1"} and volume.area_bytes(lease) == before


def test_setting_an_entry_is_done_under_the_guard(volume: Volume, host: Host) -> None:
    """Better than the reference (13 item 4), which writes without the lease."""
    other = volume.join(2)
    volume.keep_alive(host, other)
    other.acquire(volume.index.guard)
    with pytest.raises(HeldElsewhere):
        volume.set_entry(host, 3 * MIB, b"vm1")


def test_setting_an_entry_makes_no_name_twice(volume: Volume, host: Host) -> None:
    volume.create(host, b"a")
    with pytest.raises(NameTaken):
        volume.set_entry(host, 4 * MIB, b"a")
    volume.set_entry(host, 3 * MIB, b"a")


def test_rebuilding_finds_the_leases_that_lie_there(volume: Volume, host: Host) -> None:
    for name in (b"a", b"b", b"c"):
        volume.create(host, name)
    whole = volume.bytes_of(MIB, MIB)
    volume.set_entry(host, 4 * MIB, b"")
    assert volume.rebuild(host) == {0: b"a", 1: b"b", 2: b"c"}
    assert volume.bytes_of(MIB, MIB) == whole


def test_rebuilding_reads_one_sector_for_each_place_to_the_end_of_the_disk(volume: Volume, host: Host) -> None:
    volume.world.io.clear()
    volume.rebuild(host)
    places = [("R", (3 + n) * MIB, 512) for n in range(4)]
    assert volume.world.io == [
        *six_of_exclusive(SMALL, 2 * MIB),
        ("R", MIB, MIB),
        *places,
        ("R", 7 * MIB, 512),
        ("W", MIB, MIB),
        *full_release(SMALL, 2 * MIB),
    ]


def test_rebuilding_believes_only_sound_leases_of_this_lockspace(volume: Volume, host: Host) -> None:
    """Better than the reference (13 item 4), which takes whatever has the magic."""
    disk = volume.world.disks["d"]
    foreign = fresh_resource(b"OTHER", b"x", SMALL)
    damaged = bytearray(fresh_resource(b"LS", b"y", SMALL))
    damaged[40] ^= 1
    for number, area in enumerate((foreign, damaged, fresh_resource(b"LS", b"z", SMALL), bytes(MIB))):
        disk[(3 + number) * MIB : (4 + number) * MIB] = area
    assert volume.rebuild(host) == {2: b"z"}


def test_rebuilding_gives_no_name_twice(volume: Volume, host: Host) -> None:
    disk = volume.world.disks["d"]
    for number in range(2):
        disk[(3 + number) * MIB : (4 + number) * MIB] = fresh_resource(b"LS", b"twin", SMALL)
    assert volume.rebuild(host) == {0: b"twin"}


# --- the guard and I/O errors ---


def index_writes(volume: Volume) -> dict[str, int]:
    return {"lease": volume.index.offset(0), "entry": volume.place.offset + 512}


@pytest.mark.parametrize("which", ["lease", "entry"])
def test_the_guard_is_not_given_back_before_a_late_write_to_the_index_has_ended(
    volume: Volume, host: Host, which: str
) -> None:
    """Else another host would change the same sector, and the late write would undo that."""
    other = volume.join(2)
    volume.keep_alive(host, other)
    late_at = index_writes(volume)[which]
    volume.world.verdict = lambda s: "late" if isinstance(s, Write) and s.offset == late_at else None
    with pytest.raises(IOTimeout):
        host._tracked(index_module.create(host.member, volume.index, b"vm1"), 100.0)
    volume.world.verdict = lambda _step: None
    for _ in range(2):
        with pytest.raises(IOTimeout):
            host.settle(volume.index.guard)
        with pytest.raises(HeldElsewhere):
            volume.create(other, b"vm2")
    volume.world.late[0].land()
    host.settle(volume.index.guard)
    volume.create(other, b"vm2")
    assert b"vm2" in volume.entries().values()


@pytest.mark.parametrize("kind", ["fail", "late"])
def test_whichever_io_of_a_change_fails_the_index_can_be_changed_after_settling(kind: str) -> None:
    number = 0
    while True:
        volume = Volume()
        host, other = volume.join(1), volume.join(2)
        volume.keep_alive(host, other)
        seen = 0

        def verdict(step: Read | Write, number: int = number) -> str | None:
            nonlocal seen
            if step.offset < MIB:
                return None
            seen += 1
            return kind if seen == number + 1 else None

        volume.world.verdict = verdict
        try:
            host._tracked(index_module.create(host.member, volume.index, b"vm1"), 100.0)
        except Exception as error:
            assert getattr(error, "code", 0) < 0
        volume.world.verdict = lambda _step: None
        for late in volume.world.late:
            late.land()
        host.settle(volume.index.guard)
        volume.create(other, b"vm2")
        names = list(volume.entries().values())
        assert names.count(b"vm2") == 1 and names.count(b"vm1") <= 1
        for place, name in volume.entries().items():
            other.release(other.acquire(volume.index.lease(name, place)))
        if seen <= number:
            assert number > 10
            break
        number += 1
