"""Writes that timed out and land later, with real engines on a real block device: S1, S2 and S4 of late-writes.md.

Host A and host B have their own paths to one disk; one chosen write of A is held back while everything else passes.
Each of the two may be ours or the real daemon. The real pair shows that the disease is real; where ours is one of the
two, there are never two owners.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from paxos.geometry import MIB
from tests.support.storage import LateDisk
from tests.support.two_engines import ENGINES, HELD_ELSEWHERE, EngineHost, OneVolume, Refused, one_volume
from tests.support.volumes import SOON, wait_for

pytestmark = [pytest.mark.peers, pytest.mark.storage, pytest.mark.slow]

_LEASE = "vm0"
#: seconds for which a lease is asked for again and again, to see that it stays with its owner
_INSISTENCE = 3.0

#: who is A and who is B; with our hosts alone too, since what must hold holds there as well
OURS = pytest.mark.parametrize(
    "story",
    [("leasehold", "sanlock"), ("sanlock", "leasehold"), ("leasehold", "leasehold")],
    ids=lambda engines: "-".join(engines),
    indirect=True,
)


@dataclass
class Story:
    """A and B, and the disk between them."""

    disk: LateDisk
    volume: OneVolume
    a: EngineHost
    b: EngineHost

    def hold_leader(self) -> int:
        """Hold back A's next write of the leader record."""
        return self.disk.hold("a", offset=self.volume.offsets[_LEASE], length=512)

    def hold_block(self, skip: int) -> int:
        """Hold back a later write of A's own block: the first of an acquire is phase 1, the second phase 2."""
        offset = self.volume.offsets[_LEASE] + self.volume.geometry.block_offset(self.a.host_id)
        return self.disk.hold("a", offset=offset, length=512, skip=skip)

    def waits_for(self, wanting: EngineHost, holder: EngineHost) -> int:
        """`wanting` asks again and again, and gets the lease when `holder` released it and not before: its version.

        In a thread of its own: a real daemon that finds the leader several versions behind starts ballots without end
        until somebody puts the leader right (ondisk.md 13 item 6), as a holder of ours does when it releases.
        """
        got, enough = threading.Event(), threading.Event()

        def ask() -> None:
            while not enough.is_set():
                if wanting.may_acquire(_LEASE):
                    got.set()
                    return
                time.sleep(0.05)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        try:
            assert not got.wait(_INSISTENCE), "two owners"
            holder.release(_LEASE)
            assert got.wait(SOON), f"{wanting} did not get what {holder} released"
        finally:
            enough.set()
        asking.join()
        return self.volume.leader(_LEASE).lver

    def get(self, host: EngineHost) -> int:
        """`host` gets the lease in bounded time: the version that it holds."""
        wait_for(lambda: host.may_acquire(_LEASE), f"{host} to get the lease")
        return self.volume.leader(_LEASE).lver


@pytest.fixture
def story(request: pytest.FixtureRequest) -> Iterator[Story]:
    first, second = request.param
    with ExitStack() as stack:
        disk = stack.enter_context(LateDisk(8 * MIB))
        volume = one_volume(disk, [_LEASE])
        b = stack.enter_context(ENGINES[second](volume.by_path(disk.devices["b"]), 2))
        a = stack.enter_context(ENGINES[first](volume.by_path(disk.devices["a"]), 1))
        a.knows(b)
        b.knows(a)
        stack.callback(disk.release)  # first of all at the end: nobody ends with an I/O in flight
        yield Story(disk, volume, a, b)


def fails(host: EngineHost) -> None:
    """Its acquire meets the I/O that does not come back."""
    with pytest.raises(Refused) as refused:
        host.acquire(_LEASE)
    assert refused.value.number not in HELD_ELSEWHERE


# -------------------------------------------------------------------------------- S1: the commit of the leader


@pytest.mark.parametrize("story", [("sanlock", "sanlock")], ids=["sanlock-sanlock"], indirect=True)
def test_the_real_pair_has_two_owners_of_one_lease_after_a_late_commit(story: Story) -> None:
    commit = story.hold_leader()
    fails(story.a)
    story.get(story.b)
    story.disk.release(commit)
    wait_for(lambda: story.volume.leader(_LEASE).owner_id == 1, "the commit to land")
    story.a.acquire(_LEASE)  # and B holds it still: it released nothing


@OURS
def test_a_commit_that_lands_while_another_holds_makes_no_second_owner(story: Story) -> None:
    commit = story.hold_leader()
    fails(story.a)
    held = story.get(story.b)
    assert story.disk.release(commit) == 1
    assert story.waits_for(story.a, story.b) > held


@OURS
def test_a_commit_that_lands_before_anybody_else_comes_does_not_lock_them_out(story: Story) -> None:
    commit = story.hold_leader()
    fails(story.a)
    story.disk.release(commit)
    if story.a.engine == "sanlock":
        # the real daemon leaves a leader that names it the owner, until its next acquire and release
        story.get(story.a)
        story.a.release(_LEASE)
    story.get(story.b)
    story.waits_for(story.a, story.b)


@OURS
def test_a_commit_that_lands_when_another_took_it_twice_is_harmless(story: Story) -> None:
    commit = story.hold_leader()
    fails(story.a)
    first = story.get(story.b)
    story.b.release(_LEASE)
    second = story.get(story.b)
    story.disk.release(commit)
    assert first < second < story.waits_for(story.a, story.b)


# -------------------------------------------------------------------------------------- S2: the phase-2 block


@OURS
def test_a_phase_2_block_that_lands_while_another_holds_makes_no_second_owner(story: Story) -> None:
    block = story.hold_block(skip=1)
    fails(story.a)
    held = story.get(story.b)
    assert story.disk.release(block) == 1
    assert story.waits_for(story.a, story.b) > held


@OURS
def test_a_phase_2_block_that_lands_before_anybody_else_comes_does_not_lock_them_out(story: Story) -> None:
    block = story.hold_block(skip=1)
    fails(story.a)
    story.disk.release(block)
    if story.b.engine == "sanlock":
        # it finds A's value and commits that, once; then it is refused until A has settled
        story.b.may_acquire(_LEASE)
    if story.a.engine == "sanlock":
        story.get(story.a)  # see above: only its own next acquire and release heals it
        story.a.release(_LEASE)
    story.get(story.b)
    story.waits_for(story.a, story.b)


# ------------------------------------------------------------------------------- S4: the release of the leader


@OURS
def test_a_release_that_lands_versions_later_sets_no_version_back(story: Story) -> None:
    versions = [story.get(story.a)]
    release = story.hold_leader()
    try:
        story.a.release(_LEASE)
    except Refused as failed:
        assert failed.number not in HELD_ELSEWHERE
    if story.a.engine == "leasehold" and story.b.engine == "sanlock":
        # the real daemon believes the leader, and our host writes no second one while the first may still land
        assert not story.b.may_acquire(_LEASE)
        story.disk.release(release)
    for _ in range(3):
        versions.append(story.get(story.b))
        story.b.release(_LEASE)
    story.disk.release(release)
    time.sleep(0.2)
    for host in (story.b, story.a, story.b, story.a):
        versions.append(story.get(host))
        host.release(_LEASE)
    assert versions == sorted(set(versions))
