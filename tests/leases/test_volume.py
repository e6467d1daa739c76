"""Laying out volumes, and looking at them from outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from leases.findings import Severity
from leases.volume import Volume
from paxos.errors import (
    CannotOpen,
    HostIdInvalid,
    InvalidUse,
    LeaderMagicError,
    NoFreeHostId,
    NoSuchLease,
    SizesInvalid,
    VolumeInUse,
)
from paxos.geometry import MAX_HOSTS, MIB, Geometry
from paxos.index_records import IndexEntry, fresh_index
from paxos.liveness import HostState
from paxos.records import fresh_lockspace, fresh_resource
from tests.support.storage import LoopDisk
from tests.support.volumes import add_leases, make_volume, own_delta, own_lease, scribble

SIZES = list(MAX_HOSTS)


@pytest.mark.parametrize(("sector_size", "align_size"), SIZES)
def test_a_new_volume_is_lockspace_index_guard_and_room_byte_for_byte(
    directory: Path, sector_size: int, align_size: int
) -> None:
    path = directory / "v"
    Volume.create(str(path), "LS", leases=2, io_timeout=3, sector_size=sector_size, align_size=align_size)
    geometry = Geometry(sector_size, align_size)
    area, first = fresh_lockspace(b"LS", geometry, 3)
    expected = first + area[len(first) :]
    expected += fresh_index(b"LS", geometry, align_size, 2)
    expected += fresh_resource(b"LS", b"rindex_lease", geometry)
    assert path.read_bytes() == expected + bytes(2 * align_size)


def test_a_new_file_is_written_full(directory: Path) -> None:
    path = directory / "v"
    Volume.create(str(path), "LS", leases=8)
    status = path.stat()
    assert status.st_blocks * 512 >= status.st_size == 11 * MIB


def test_what_was_created_is_found_again(directory: Path) -> None:
    path = str(directory / "v")
    Volume.create(path, "LS", leases=5, hosts=20, sector_size=4096, align_size=2 * MIB)
    volume = Volume(path)
    assert volume.probe() == ("LS", Geometry(4096, 2 * MIB))
    assert volume.lockspace == "LS" and volume.geometry.max_hosts == 500
    assert volume.index.max_resources == 5
    assert volume.leases() == [] and volume.hosts() == [] and volume.check() == []


def test_without_a_number_a_file_has_room_for_64_leases(directory: Path) -> None:
    volume = Volume.create(str(directory / "v"), "LS")
    assert volume.index.max_resources == 64
    assert os.path.getsize(volume.path) == 67 * MIB


def test_a_volume_in_use_is_not_laid_out_again(volume: Volume) -> None:
    before = Path(volume.path).read_bytes()
    with pytest.raises(VolumeInUse, match="lockspace LS"):
        Volume.create(volume.path, "other")
    assert Path(volume.path).read_bytes() == before


@pytest.mark.parametrize("offset", [0, MIB + 512, 3 * MIB - 1])
def test_foreign_data_is_not_overwritten(directory: Path, offset: int) -> None:
    path = directory / "v"
    data = bytearray(8 * MIB)
    data[offset] = 1
    path.write_bytes(data)
    with pytest.raises(VolumeInUse, match=f"data at byte {offset}"):
        Volume.create(str(path), "LS")
    assert path.read_bytes() == data


def test_by_force_it_is(volume: Volume) -> None:
    again = Volume.create(volume.path, "other", leases=3, force=True)
    assert again.lockspace == "other" and again.index.max_resources == 3
    assert again.leases() == []


def test_an_empty_file_grows_to_what_is_asked_for(directory: Path) -> None:
    path = directory / "v"
    path.write_bytes(bytes(100))
    Volume.create(str(path), "LS", leases=3)
    assert path.stat().st_size == 6 * MIB


@pytest.mark.parametrize(
    "options",
    [
        {"sector_size": 512},
        {"align_size": MIB},
        {"sector_size": 512, "align_size": 8 * MIB},
        {"hosts": -1},
        {"leases": -1},
        {"leases": 16001},
        {"io_timeout": 0},
        {"io_timeout": 256},
    ],
)
def test_what_can_not_be_is_refused_and_leaves_no_file(directory: Path, options: dict[str, int]) -> None:
    path = directory / "v"
    with pytest.raises((SizesInvalid, InvalidUse)):
        Volume.create(str(path), "LS", **options)  # type: ignore[arg-type]
    assert not path.exists()


@pytest.mark.parametrize("name", ["", "n" * 49])
def test_a_lockspace_has_a_name_of_at_most_48_bytes(directory: Path, name: str) -> None:
    with pytest.raises(InvalidUse):
        Volume.create(str(directory / "v"), name)
    assert not (directory / "v").exists()


def test_a_volume_can_not_be_made_where_nothing_can_be(directory: Path) -> None:
    with pytest.raises(CannotOpen):
        Volume.create(str(directory / "missing" / "v"), "LS")


@pytest.mark.storage
@pytest.mark.parametrize("sector_size", [512, 4096])
def test_on_a_disk_the_sizes_are_the_disks_and_it_has_as_many_leases_as_fit(sector_size: int) -> None:
    with LoopDisk(sector_size, size=64 * MIB) as disk:
        volume = Volume.create(disk.path, "LS")
        assert volume.geometry == Geometry.default(sector_size)
        assert volume.index.max_resources == 64 * MIB // volume.geometry.align_size - 3
        with pytest.raises(InvalidUse, match="room"):
            Volume.create(disk.path, "LS", leases=62, force=True)


@pytest.mark.storage
def test_sectors_smaller_than_the_disks_are_refused() -> None:
    with LoopDisk(4096, size=16 * MIB) as disk, pytest.raises(InvalidUse, match="4096-byte"):
        Volume.create(disk.path, "LS", sector_size=512, align_size=MIB)


# ---------------------------------------------------------------------------------------------------- looking


def test_leases_are_listed_with_their_places(volume: Volume) -> None:
    assert [(lease.name, lease.offset, lease.mode) for lease in volume.leases()] == [
        ("r0", 3 * MIB, "free"),
        ("r1", 4 * MIB, "free"),
    ]
    assert volume.lease("r1").offset == 4 * MIB and volume.lease("r1").num_hosts == 250


def test_a_lease_that_is_not_there_is_named(volume: Volume) -> None:
    with pytest.raises(NoSuchLease, match="nope"):
        volume.lease("nope")


def test_a_damaged_lease_does_not_hide_the_others(volume: Volume) -> None:
    scribble(volume, 3 * MIB, b"damage")
    damaged, sound = volume.leases()
    assert "r0" in damaged.name and damaged.problem and damaged.mode == "unknown"
    assert sound.name == "r1" and not sound.problem


def test_what_is_no_volume_is_said_so(directory: Path) -> None:
    path = directory / "v"
    path.write_bytes(bytes(4 * MIB))
    with pytest.raises(LeaderMagicError):
        Volume(str(path)).probe()


def test_an_exclusive_owner_is_shown_with_its_hosts_name(volume: Volume) -> None:
    own_delta(volume, 7, b"node7", generation=3)
    own_lease(volume, "r0", 7, generation=3)
    lease = volume.lease("r0")
    (owner,) = lease.owners
    assert lease.mode == "exclusive" and lease.lver == 5
    assert (owner.host_id, owner.generation, owner.host_name, owner.ended) == (7, 3, "node7", False)
    (host,) = volume.hosts()
    assert (host.host_id, host.name, host.state) == (7, "node7", HostState.UNKNOWN)


def test_explain_says_when_the_lease_of_a_silent_host_can_be_taken(volume: Volume) -> None:
    own_delta(volume, 7, b"node7", generation=3)
    own_lease(volume, "r0", 7, generation=3)
    explanation = volume.explain("r0", watch_seconds=0.2, fire_timeout=60)
    assert explanation.free_in is not None and 60 < explanation.free_in <= 68
    assert explanation.renewed_ago is None and "node7" in explanation.summary


def test_explain_knows_a_dead_host_when_it_has_watched_long_enough(volume: Volume) -> None:
    own_delta(volume, 7, b"node7", generation=3, io_timeout=1)
    own_lease(volume, "r0", 7, generation=3)
    explanation = volume.explain("r0", watch_seconds=8.4, fire_timeout=0)
    assert explanation.free_in == 0.0 and "dead" in explanation.summary


@pytest.mark.parametrize(("generation", "timestamp"), [(4, 1), (3, 0)])
def test_the_lease_of_a_host_that_left_or_came_again_can_be_taken(
    volume: Volume, generation: int, timestamp: int
) -> None:
    own_delta(volume, 7, b"node7", generation=generation, timestamp=timestamp)
    own_lease(volume, "r0", 7, generation=3)
    explanation = volume.explain("r0")
    assert explanation.free_in == 0.0 and "can be taken" in explanation.summary


def test_explain_says_that_a_free_lease_is_free(volume: Volume) -> None:
    assert volume.explain("r0").free_in == 0.0


# --------------------------------------------------------------------------------------------------- checking


def test_a_sound_volume_has_no_findings(volume: Volume) -> None:
    assert volume.check() == []


def test_a_host_slot_that_was_written_over_is_found(volume: Volume) -> None:
    scribble(volume, 8 * 512 + 100, b"x")
    (finding,) = volume.check()
    assert finding.severity is Severity.ERROR and "host id 9: its checksum" in finding.what
    assert finding.place.offset == 8 * 512


def test_a_slot_of_another_lockspace_is_found(volume: Volume) -> None:
    foreign = fresh_lockspace(b"OTHER", volume.geometry, 1)[1]
    scribble(volume, 4 * 512, foreign)
    (finding,) = volume.check()
    assert "lockspace OTHER" in finding.what


def test_two_hosts_of_one_name_are_found(volume: Volume) -> None:
    own_delta(volume, 3, b"same")
    own_delta(volume, 5, b"same")
    (finding,) = volume.check()
    assert finding.severity is Severity.WARNING and "3 and 5" in finding.what


def test_a_record_in_the_wrong_slot_is_found(volume: Volume) -> None:
    own_delta(volume, 3, b"node", slot=6)
    (finding,) = volume.check()
    assert "host id 6" in finding.what and "host 3" in finding.what


def test_duplicate_names_are_found(volume: Volume) -> None:
    add_leases(volume, "r0", "r1", "r0")
    (finding,) = volume.check()
    assert finding.severity is Severity.ERROR and "entries 0 and 2" in finding.what


def test_a_lease_that_the_index_does_not_name_is_found(volume: Volume) -> None:
    index = volume.index
    scribble(volume, index.offset(2), fresh_resource(b"LS", b"lonely", volume.geometry))
    (finding,) = volume.check()
    assert "lonely" in finding.what and finding.advice


def test_an_entry_without_its_lease_is_found(volume: Volume) -> None:
    index = volume.index
    entry = IndexEntry.of(b"ghost", index.offset(3))
    scribble(volume, index.place.at(index.geometry.index_entry_offset(3)), entry.pack())
    (finding,) = volume.check()
    assert finding.severity is Severity.ERROR and "ghost" in finding.what


def test_a_damaged_block_is_found(volume: Volume) -> None:
    scribble(volume, 3 * MIB + 4 * 512, b"\1")
    (finding,) = volume.check()
    assert "block of host 3" in finding.what


def test_foreign_data_in_an_unused_place_is_found(volume: Volume) -> None:
    scribble(volume, volume.index.offset(3) + 7, b"foreign")
    (finding,) = volume.check()
    assert finding.severity is Severity.NOTE and "foreign" in finding.what


def test_a_damaged_index_is_found(volume: Volume) -> None:
    scribble(volume, MIB, b"\0\0\0\0")
    (finding,) = volume.check()
    assert "index" in finding.what


def test_a_volume_that_ends_too_early_is_found(volume: Volume) -> None:
    os.truncate(volume.path, 5 * MIB)
    (finding,) = volume.check()
    assert finding.severity is Severity.NOTE and "2 leases" in finding.what


# ---------------------------------------------------------------------------------- joining, before it begins


def test_a_host_id_must_fit_into_the_lockspace(volume: Volume) -> None:
    with pytest.raises(HostIdInvalid):
        volume.join(2001, watchdog="none")


def test_there_may_be_no_free_host_id(directory: Path) -> None:
    volume = Volume.create(str(directory / "v"), "LS", leases=1, hosts=2, io_timeout=1)
    own_delta(volume, 1, b"a")
    own_delta(volume, 2, b"b")
    with pytest.raises(NoFreeHostId, match="of 2"):
        volume.join(watchdog="none")


def test_a_volume_for_tests_is_a_sound_one(directory: Path) -> None:
    assert make_volume(str(directory / "v")).check() == []
