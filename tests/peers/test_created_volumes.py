"""What leasehold lays out and writes, the reference's tools make byte for byte and read, and the other way round."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from leases.lockspace import Lockspace
from leases.volume import Volume
from paxos.errors import IndexFull, LeaseholdError, NameTaken
from paxos.geometry import MAX_HOSTS, MIB, Geometry
from tests.support.peers import (
    PeerFailed,
    SanlockDaemon,
    direct,
    direct_dump,
    direct_format,
    direct_init,
    read_leader,
    zeroed_image,
)
from tests.support.storage import LoopDisk
from tests.support.volumes import Joiner

pytestmark = pytest.mark.peers

SIZES = pytest.mark.parametrize(
    ("sector_size", "align_size"), list(MAX_HOSTS), ids=[f"{s}-{a // MIB}M" for s, a in MAX_HOSTS]
)
_LEASES = 3
_AREAS = 3 + _LEASES


def made_by_sanlock(path: Path, sector_size: int, align_size: int, io_timeout: int = 1) -> bytes:
    """What leasehold makes in one go: lockspace, index with its lease."""
    image = zeroed_image(path, _AREAS * align_size // MIB)
    direct_init(f"LS:0:{image}:0", io_timeout=io_timeout, sector_size=sector_size, align_size=align_size)
    direct_format(f"LS:{image}:{align_size}", sector_size=sector_size, align_size=align_size)
    return path.read_bytes()


def with_leases(image: bytes, sector_size: int, align_size: int, leases: int) -> bytes:
    """The reference's image as ours should be. Its index always names 4096 leases: no option of it says otherwise."""
    at = align_size + 16
    assert int.from_bytes(image[at : at + 4], "little") == 4096
    image = image[:at] + leases.to_bytes(4, "little") + image[at + 4 :]
    return without_leak(image, 2 * align_size, sector_size)


def without_leak(image: bytes, lease: int, sector_size: int) -> bytes:
    """Without what the reference leaks of its memory into the request record of a lease (ondisk.md 2.6)."""
    padding = lease + sector_size + 20
    return image[:padding] + bytes(4) + image[padding + 4 :]


# ------------------------------------------------------------------------------------------------ byte for byte


@SIZES
def test_a_volume_is_byte_for_byte_what_the_reference_lays_out(images: Path, sector_size: int, align_size: int) -> None:
    path = images / "ours"
    Volume.create(str(path), "LS", leases=_LEASES, io_timeout=7, sector_size=sector_size, align_size=align_size)
    theirs = made_by_sanlock(images / "theirs", sector_size, align_size, io_timeout=7)
    assert path.read_bytes() == with_leases(theirs, sector_size, align_size, _LEASES)


@pytest.mark.storage
@pytest.mark.parametrize("sector_size", [512, 4096])
def test_on_a_disk_too_with_the_sizes_that_both_find_by_themselves(sector_size: int) -> None:
    align_size = {512: MIB, 4096: 8 * MIB}[sector_size]
    size = _AREAS * align_size
    with LoopDisk(sector_size, size) as ours, LoopDisk(sector_size, size) as theirs:
        Volume.create(ours.path, "LS", leases=_LEASES, io_timeout=1)
        direct("init", "-s", f"LS:0:{theirs.path}:0", "-o", "1")
        direct("format", "-x", f"LS:{theirs.path}:{align_size}")
        assert ours.read(0, size) == with_leases(theirs.read(0, size), sector_size, align_size, _LEASES)


def test_names_of_all_48_bytes_too(images: Path) -> None:
    name = "N" * 48
    Volume.create(str(images / "ours"), name, leases=_LEASES, io_timeout=1)
    image = zeroed_image(images / "theirs", _AREAS)
    direct_init(f"{name}:0:{image}:0", io_timeout=1)
    direct_format(f"{name}:{image}:{MIB}")
    assert (images / "ours").read_bytes() == with_leases((images / "theirs").read_bytes(), 512, MIB, _LEASES)


@pytest.mark.slow
@SIZES
def test_a_lease_is_byte_for_byte_what_the_reference_makes(
    images: Path, join: Joiner, sector_size: int, align_size: int
) -> None:
    path = images / "ours"
    volume = Volume.create(
        str(path), "LS", leases=_LEASES, io_timeout=1, sector_size=sector_size, align_size=align_size
    )
    place = join(volume, 1).create_lease("vm1").place.offset
    image = zeroed_image(images / "theirs", _AREAS * align_size // MIB)
    direct_init(f"LS:vm1:{image}:{place}", sector_size=sector_size, align_size=align_size)
    theirs = without_leak((images / "theirs").read_bytes(), place, sector_size)
    lease = slice(place, place + align_size)
    assert path.read_bytes()[lease] == theirs[lease]


# ----------------------------------------------------------------------------------------------- what they read


@pytest.mark.slow
@SIZES
def test_the_reference_reads_all_that_leasehold_writes(
    images: Path, join: Joiner, sector_size: int, align_size: int
) -> None:
    path = str(images / "v")
    volume = Volume.create(path, "LS", leases=_LEASES, io_timeout=1, sector_size=sector_size, align_size=align_size)
    lockspace = join(volume, 7, owner_name="node-seven")
    places = {name: lockspace.create_lease(name).place.offset for name in ("vm0", "vm1", "vm2")}
    sizes = {"sector_size": sector_size, "align_size": align_size}

    record = read_leader(f"LS:7:{path}:0", **sizes)
    assert (record["owner_id"], record["owner_generation"], record["resource_name"]) == (7, 1, "node-seven")
    assert record["timestamp"] and record["checksum"]

    lockspace.acquire("vm0")
    lockspace.acquire("vm1", shared=True)
    lockspace.acquire("vm2").release()
    exclusive, shared, free = (read_leader(f"LS:{name}:{path}:{place}", **sizes) for name, place in places.items())
    assert (exclusive["owner_id"], exclusive["lver"], exclusive["timestamp"] != 0) == (7, 1, True)
    assert (shared["lver"], shared["timestamp"]) == (1, 0)
    assert (free["owner_id"], free["lver"], free["timestamp"]) == (7, 1, 0)
    assert exclusive["num_hosts"] == exclusive["max_hosts"] == Geometry(sector_size, align_size).max_hosts

    hosts = dumped(path, 0, align_size)
    assert [(lockspace, owner, host) for _, lockspace, owner, _, host, *_ in hosts] == [("LS", "node-seven", "0007")]
    dumps = {name: dumped(path, place, align_size) for name, place in places.items()}
    for name, ((at, *words, lver), *_) in dumps.items():
        assert (int(at), words[:2], words[3:], lver) == (places[name], ["LS", name], ["0007", "0001"], "1")
    assert {name: more for name, (_, *more) in dumps.items()} == {
        "vm0": [],
        "vm1": [["0007", "0001", "SH"]],
        "vm2": [],
    }


def dumped(path: str, offset: int, align_size: int) -> list[list[str]]:
    """The words of each line of a dump, but its heading."""
    return [line.split() for line in direct_dump(path, offset, align_size).splitlines()[1:] if line]


# ---------------------------------------------------------------------------------------------------- the index


class TheirIndex:
    """The index as the reference's daemon and tools see and change it."""

    def __init__(self, daemon: SanlockDaemon, path: str, offset: int) -> None:
        self._daemon, self._at = daemon, f"LS:{path}:{offset}"

    def create(self, name: str) -> subprocess.CompletedProcess[str]:
        return self._daemon.cli("create", "-x", self._at, "-e", name)

    def delete(self, name: str) -> None:
        self._daemon.cli("delete", "-x", self._at, "-e", name)

    def rebuild(self) -> None:
        self._daemon.cli("rebuild", "-x", self._at)

    def lookup(self, name: str) -> int:
        """The offset of a lease. Raises PeerFailed when it is not there."""
        return int(self._daemon.cli("lookup", "-x", self._at, "-e", name).stdout.split()[-1].rpartition(":")[2])

    def lookup_directly(self, name: str) -> int:
        """The same without a daemon."""
        return int(direct("lookup", "-x", self._at, "-e", name).stdout.split()[-1].rpartition(":")[2])


@pytest.fixture
def both(images: Path, join: Joiner, sanlock_daemons: Callable[..., SanlockDaemon]) -> Iterator[Indexed]:
    """A volume with room for three leases, of which both hosts are members."""
    path = str(images / "v")
    volume = Volume.create(path, "LS", leases=_LEASES, io_timeout=1)
    lockspace = join(volume, 1, fire_timeout=60)
    daemon = sanlock_daemons("host2")
    daemon.add_lockspace("LS", 2, path)
    yield Indexed(volume, lockspace, TheirIndex(daemon, path, MIB))


class Indexed:
    def __init__(self, volume: Volume, ours: Lockspace, theirs: TheirIndex) -> None:
        self.volume, self.ours, self.theirs = volume, ours, theirs

    def names(self) -> list[str]:
        return [lease.name for lease in self.volume.leases()]


@pytest.mark.slow
def test_both_see_what_either_puts_into_the_index(both: Indexed) -> None:
    ours = both.ours.create_lease("ours").place.offset
    both.theirs.create("theirs")
    assert both.names() == ["ours", "theirs"] and both.volume.check() == []
    for name in ("ours", "theirs"):
        place = both.volume.lease(name).offset
        assert both.theirs.lookup(name) == both.theirs.lookup_directly(name) == place
    assert ours == 3 * MIB and both.volume.lease("theirs").offset == 4 * MIB
    with both.ours.acquire("theirs") as lease:
        assert lease.token.lver == 1


@pytest.mark.slow
def test_both_can_delete_what_the_other_made_and_use_the_place_again(both: Indexed) -> None:
    both.theirs.create("theirs")
    both.ours.create_lease("ours")
    both.ours.delete_lease("theirs")
    both.theirs.delete("ours")
    assert both.names() == []
    with pytest.raises(PeerFailed):
        both.theirs.lookup("theirs")
    both.ours.create_lease("again")
    assert both.theirs.lookup("again") == 3 * MIB
    both.theirs.create("again2")
    assert both.volume.lease("again2").offset == 4 * MIB


@pytest.mark.slow
def test_what_one_deletes_the_other_can_not_acquire(both: Indexed) -> None:
    both.ours.create_lease("vm1")
    both.ours.acquire("vm1").release()
    both.theirs.delete("vm1")
    with pytest.raises(LeaseholdError):
        both.ours.acquire("vm1")
    both.theirs.create("other")
    both.theirs.create("vm1")  # elsewhere now
    with both.ours.acquire("vm1"):
        assert both.ours.area_of("vm1").place.offset == 4 * MIB


@pytest.mark.slow
def test_a_name_is_taken_whoever_made_it_and_the_index_ends_where_it_ends(both: Indexed) -> None:
    for name in ("a", "b"):
        both.theirs.create(name)
    with pytest.raises(NameTaken):
        both.ours.create_lease("b")
    both.ours.create_lease("c")
    with pytest.raises(IndexFull):
        both.ours.create_lease("d")
    with pytest.raises(PeerFailed):
        both.theirs.create("d")


@pytest.mark.slow
def test_an_index_that_one_rebuilds_is_what_the_other_had_built(both: Indexed) -> None:
    both.ours.create_lease("a")
    both.theirs.create("b")
    both.ours.create_lease("c")
    both.theirs.delete("b")
    before = Path(both.volume.path).read_bytes()[MIB : 2 * MIB]
    for rebuild in (both.theirs.rebuild, both.ours.rebuild_index):
        with open(both.volume.path, "r+b") as image:
            image.seek(MIB + 512)
            image.write(bytes(512))
        rebuild()
        assert Path(both.volume.path).read_bytes()[MIB : 2 * MIB] == before
    assert both.names() == ["a", "c"]


@pytest.mark.slow
def test_both_change_the_index_at_the_same_time_and_nothing_is_lost(
    images: Path, join: Joiner, sanlock_daemons: Callable[..., SanlockDaemon]
) -> None:
    path = str(images / "v")
    volume = Volume.create(path, "LS", leases=24, io_timeout=1)
    lockspace = join(volume, 1, fire_timeout=60)
    daemon = sanlock_daemons("host2")
    daemon.add_lockspace("LS", 2, path)
    loop = (
        f"for n in 1 2 3 4 5 6 7 8; do until sanlock client create -x LS:{path}:{MIB} -e t$n; do sleep .02; done; done"
    )
    theirs = subprocess.Popen(["sh", "-c", loop], env=daemon.environment, stdout=subprocess.DEVNULL)
    made = 0
    while made < 8:
        try:
            lockspace.create_lease(f"o{made}")
        except LeaseholdError as busy:
            assert type(busy).__name__ in ("LeaseHeld", "LeaseOwned", "LeaseOther", "OwnerMayBeDead", "TryAgain")
        else:
            made += 1
    assert theirs.wait(120) == 0
    names = [lease.name for lease in volume.leases()]
    assert sorted(names) == sorted([f"o{n}" for n in range(8)] + [f"t{n}" for n in range(1, 9)])
    assert volume.check() == []
