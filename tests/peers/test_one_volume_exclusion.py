"""One volume, two engines: a host of ours and a real sanlock daemon exclude each other and share with each other.

On a regular file, and on block devices with sectors of 512 and of 4096 bytes; for every pair of modes, both ways,
and through conversions. Every test has leases of its own on a volume that its whole file uses.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count

import pytest

from leases.volume import Volume
from paxos.geometry import MIB
from tests.support.storage import LoopDisk, PlainDisk
from tests.support.two_engines import EngineHost, LeaseholdHost, OneVolume, Refused, SanlockHost, one_volume
from tests.support.volumes import SOON

pytestmark = [pytest.mark.peers, pytest.mark.storage, pytest.mark.slow]

_LIVE_OWNER, _SHARED_HOLDER = -243, -11
_LEASES = 36


@dataclass
class Pair:
    """Two joined hosts that have seen each other, and leases that nobody used yet."""

    volume: OneVolume
    hosts: dict[str, EngineHost]
    numbers: Iterator[int]

    def lease(self) -> str:
        return f"vm{next(self.numbers)}"


def _pair(disk: PlainDisk, align_size: int, stack: ExitStack) -> Pair:
    volume = one_volume(stack.enter_context(disk), [f"vm{number}" for number in range(_LEASES)], align_size)
    ours = stack.enter_context(LeaseholdHost(volume, 1))
    theirs = stack.enter_context(SanlockHost(volume, 2))
    ours.knows(theirs)
    theirs.knows(ours)
    return Pair(volume, {"leasehold": ours, "sanlock": theirs}, count())


#: kinds of disks and align sizes
DISKS: dict[str, tuple[Callable[[], PlainDisk], int]] = {
    "file": (lambda: PlainDisk((_LEASES + 3) * MIB), MIB),
    "loop-512": (lambda: LoopDisk(512, (_LEASES + 3) * MIB), MIB),
    "loop-4096": (lambda: LoopDisk(4096, (_LEASES + 3) * MIB), MIB),
    "loop-4096-8M": (lambda: LoopDisk(4096, (_LEASES + 3) * 8 * MIB), 8 * MIB),
}


@pytest.fixture(scope="module", params=list(DISKS))
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    with ExitStack() as stack:
        make, align_size = DISKS[request.param]
        yield _pair(make(), align_size, stack)


@pytest.fixture(params=["leasehold", "sanlock"], ids=["leasehold-first", "sanlock-first"])
def both(request: pytest.FixtureRequest, pair: Pair) -> tuple[EngineHost, EngineHost]:
    """Who begins, and the other."""
    first = pair.hosts[request.param]
    (second,) = (host for host in pair.hosts.values() if host is not first)
    return first, second


def refused(host: EngineHost, lease: str, *, shared: bool) -> int:
    with pytest.raises(Refused) as refusal:
        host.acquire(lease, shared=shared)
    return refusal.value.number


@pytest.mark.parametrize("second_shared", [False, True], ids=["second-EX", "second-SH"])
@pytest.mark.parametrize("first_shared", [False, True], ids=["first-EX", "first-SH"])
def test_whoever_has_it_excludes_the_other_unless_both_share(
    pair: Pair, both: tuple[EngineHost, EngineHost], first_shared: bool, second_shared: bool
) -> None:
    (first, second), lease = both, pair.lease()
    first.acquire(lease, shared=first_shared)
    if first_shared and second_shared:
        second.acquire(lease, shared=True)
        second.release(lease)
    else:
        assert refused(second, lease, shared=second_shared) == (_SHARED_HOLDER if first_shared else _LIVE_OWNER)
    first.release(lease)
    second.acquire(lease, shared=second_shared)
    second.release(lease)


def test_it_goes_back_and_forth_and_its_version_only_grows(pair: Pair, both: tuple[EngineHost, EngineHost]) -> None:
    lease, versions = pair.lease(), []
    for host in both * 10:
        host.acquire(lease)
        leader = pair.volume.leader(lease)
        assert (leader.owner_id, leader.timestamp > 0) == (host.host_id, True)
        versions.append(leader.lver)
        host.release(lease)
        assert pair.volume.leader(lease).timestamp == 0
    assert versions == list(range(1, 21))


def test_a_refused_attempt_leaves_the_holder_alone(pair: Pair, both: tuple[EngineHost, EngineHost]) -> None:
    (first, second), lease = both, pair.lease()
    first.acquire(lease)
    before = pair.volume.leader(lease)
    for _ in range(5):
        assert not second.may_acquire(lease) and not second.may_acquire(lease, shared=True)
    assert pair.volume.leader(lease) == before
    first.release(lease)


def test_a_shared_lease_alone_becomes_exclusive(pair: Pair, both: tuple[EngineHost, EngineHost]) -> None:
    (first, second), lease = both, pair.lease()
    first.acquire(lease, shared=True)
    first.convert(lease, shared=False)
    assert refused(second, lease, shared=True) == _LIVE_OWNER
    assert refused(second, lease, shared=False) == _LIVE_OWNER
    first.release(lease)
    assert second.may_acquire(lease)
    second.release(lease)


def test_a_shared_lease_that_the_other_shares_stays_shared(pair: Pair, both: tuple[EngineHost, EngineHost]) -> None:
    (first, second), lease = both, pair.lease()
    first.acquire(lease, shared=True)
    second.acquire(lease, shared=True)
    for host in both:
        with pytest.raises(Refused) as refusal:
            host.convert(lease, shared=False)
        assert refusal.value.number == _SHARED_HOLDER
    first.release(lease)
    second.convert(lease, shared=False)
    assert refused(first, lease, shared=True) == _LIVE_OWNER
    second.release(lease)
    assert first.may_acquire(lease)
    first.release(lease)


def test_an_exclusive_lease_becomes_shared_and_lets_the_other_in(
    pair: Pair, both: tuple[EngineHost, EngineHost]
) -> None:
    (first, second), lease = both, pair.lease()
    first.acquire(lease)
    first.convert(lease, shared=True)
    assert refused(second, lease, shared=False) == _SHARED_HOLDER
    second.acquire(lease, shared=True)
    first.release(lease)
    assert refused(first, lease, shared=False) == _SHARED_HOLDER
    second.release(lease)
    first.acquire(lease)
    first.release(lease)


def test_a_holder_in_both_directions_of_conversion_is_never_passed(
    pair: Pair, both: tuple[EngineHost, EngineHost]
) -> None:
    (first, second), lease = both, pair.lease()
    first.acquire(lease)
    for shared in (True, False) * 5:
        first.convert(lease, shared=shared)
        assert not second.may_acquire(lease)
    first.release(lease)


def test_the_value_block_goes_from_one_to_the_other(pair: Pair, both: tuple[EngineHost, EngineHost]) -> None:
    (first, second), lease = both, pair.lease()
    first.acquire(lease)
    if not pair.volume.geometry.has_lvb:  # the reference would write into another lease's area (ondisk.md 2.8)
        first.release(lease)
        ours = pair.hosts["leasehold"]
        with ours.holding(lease), pytest.raises(Refused) as refusal:
            ours.write_lvb(lease, b"a word")
        assert refusal.value.number == -errno.EINVAL
        return
    first.write_lvb(lease, b"a word from the first".ljust(512, b"."))
    first.release(lease)
    second.acquire(lease)
    assert second.read_lvb(lease)[:512] == b"a word from the first".ljust(512, b".")
    second.release(lease)


@pytest.mark.parametrize("shared", [False, True], ids=["EX", "SH"])
def test_both_name_the_same_owner(pair: Pair, both: tuple[EngineHost, EngineHost], shared: bool) -> None:
    (first, _), lease = both, pair.lease()
    first.acquire(lease, shared=shared)
    places = [(pair.volume.path, pair.volume.offsets[lease])]
    theirs = pair.hosts["sanlock"]
    assert isinstance(theirs, SanlockHost)
    sizes = {"align": pair.volume.geometry.align_size, "sector": pair.volume.geometry.sector_size}
    named = theirs.client.call("read_resource_owners", b"LS", lease.encode(), places, **sizes)
    info = Volume(pair.volume.path).lease(lease)
    assert info.mode == ("shared" if shared else "exclusive")
    assert [(o.host_id, o.generation, o.timestamp) for o in info.owners] == [
        (o["host_id"], o["generation"], o["timestamp"]) for o in named
    ]
    assert [o.host_id for o in info.owners] == [first.host_id]
    first.release(lease)
    assert theirs.client.call("read_resource_owners", b"LS", lease.encode(), places, **sizes) == []
    assert Volume(pair.volume.path).lease(lease).mode == "free"


def test_each_can_ask_the_other_for_a_lease_and_its_holder_is_stopped(
    pair: Pair, both: tuple[EngineHost, EngineHost]
) -> None:
    (first, second), lease = both, pair.lease()
    with os.fdopen(os.pidfd_open(first.run(lease, "/bin/sleep", "1000"))) as holder:
        second.request(lease)
        assert select.select([holder], [], [], SOON)[0], "the holder was not stopped"


def test_each_sees_the_other_alive_and_knows_its_generation(pair: Pair) -> None:
    ours, theirs = pair.hosts["leasehold"], pair.hosts["sanlock"]
    assert ours.state_of(theirs.host_id) == theirs.state_of(ours.host_id) == "LIVE"
    assert ours.state_of(ours.host_id) == theirs.state_of(theirs.host_id) == "LIVE"
    told = theirs.client.call("get_hosts", b"LS") if isinstance(theirs, SanlockHost) else []
    assert {host["host_id"]: host["generation"] for host in told} == {1: 1, 2: 1}


def test_a_host_that_left_is_seen_to_be_gone_and_seen_again_when_it_is_back(
    pair: Pair, both: tuple[EngineHost, EngineHost]
) -> None:
    watching, coming = both
    for generation in (1, 2):
        with type(coming)(pair.volume, 10 if coming.engine == "sanlock" else 11) as third:
            watching.knows(third)
            assert pair.volume.delta(third.host_id).owner_generation == generation
            third.leave()
            watching.sees(third.host_id, "FREE")
