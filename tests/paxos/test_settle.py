"""After an I/O error: nothing is granted that is not known, and nothing stays locked up.

The loop of this file runs each operation with its 1st, 2nd, 3rd ... I/O failing: with an error, timing out and lost,
timing out and landing later. Then the resource is settled, also with the settling's own I/Os failing; then the lease
must be to be had by another host and by us, and never by both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from leases.sim.reference import ERASED
from paxos import resource
from paxos.errors import BallotReadFailed, BallotWriteFailed, DiskError, HeldElsewhere, IOTimeout, TryAgain
from paxos.geometry import MIB, Geometry
from paxos.lease_area import LeaseArea
from paxos.records import RELEASED
from paxos.resource import Held, Want
from paxos.settle import pending_of
from paxos.steps import Read, Write
from tests.support.cluster import Cluster, Host
from tests.support.memory import Landed

#: what becomes of the I/O that is struck
FATES = ("fails", "is lost", "lands late")


class Case:
    """Hosts A (1), B (2) and a dead one (3), one lease, an operation of A that an I/O error strikes."""

    def __init__(self) -> None:
        self.cluster = Cluster(Geometry(4096, MIB), num_hosts=8)
        self.world = self.cluster.world
        self.a, self.b, self.dead = (self.cluster.join(number) for number in (1, 2, 3))
        self.cluster.keep_alive(self.a, self.b, self.dead)
        self.held: Held | None = None
        #: what A keeps if the operation fails
        self.keep: Held | None = None

    @property
    def lease(self) -> LeaseArea:
        return self.cluster.lease

    def let_the_third_die(self) -> None:
        self.cluster.alive.remove(self.dead)
        for _ in range(15):
            self.world.pass_time(5)

    def strike(self, number: int, fate: str) -> Callable[[], int]:
        """Strike the `number`th I/O on the lease from now on; returns a count of them."""
        count = 0

        def verdict(step: Read | Write) -> str | None:
            nonlocal count
            if step.offset < self.lease.place.offset:
                return None
            count += 1
            if count != number:
                return None
            return "fail" if fate == "fails" else "late"

        self.world.verdict = verdict
        return lambda: count

    def heal(self) -> None:
        self.world.verdict = lambda _step: None

    def give_back(self, fate: str) -> None:
        for late in self.world.late:
            if fate == "is lost":
                late.lose()
            else:
                late.land()

    def try_by_b(self) -> None:
        """B tries; if it gets the lease, A may have no part in it."""
        try:
            held = self.b.acquire(self.lease, Want(nowait=True))
        except (HeldElsewhere, TryAgain):
            return
        assert self.held is None, "two owners"
        self.b.release(held)

    def settle(self) -> None:
        self.a.settle(self.lease, self.keep)

    def by_each_in_turn(self) -> None:
        """A gives back what it still holds; then B, A and B again get the lease, within a few tries each."""
        if self.held is not None:
            with pytest.raises(HeldElsewhere):
                self.b.acquire(self.lease, Want(nowait=True))
            self.a.release(self.held)
            self.held = None
        for host in (self.b, self.a, self.b):
            got = self.got_by(host)
            assert [owner.host_id for owner in self.cluster.owners()] == [host.host_id]
            host.release(got)
            assert self.cluster.owners() == []

    def got_by(self, host: Host) -> Held:
        for _ in range(4):
            try:
                return host.acquire(self.lease, Want(nowait=True))
            except (HeldElsewhere, TryAgain):
                self.world.pass_time(3)
        raise AssertionError(f"host {host.host_id} can't get it any more")


Act = Callable[[Case], None]


def acquire(case: Case) -> None:
    case.held = case.a.acquire(case.lease, Want(nowait=True))


def share(case: Case) -> None:
    case.held = case.a.acquire(case.lease, Want(shared=True, nowait=True))


def release(case: Case) -> None:
    held, case.held = case.held, None
    assert held is not None
    case.a.release(held)


def release_renamed_alike(case: Case) -> None:
    held, case.held = case.held, None
    assert held is not None
    case.a._tracked(resource.release(case.a.member, held, new_name=b"r0"), 1000.0)


def to_exclusive(case: Case) -> None:
    assert case.held is not None
    case.keep = case.held
    case.held = case.a._tracked(resource.convert_to_exclusive(case.a.member, case.held, nowait=True), 1000.0)
    case.keep = None


def to_shared(case: Case) -> None:
    held, case.held = case.held, None
    assert held is not None
    case.held = case.a._tracked(resource.convert_to_shared(case.a.member, held), 1000.0)


def b_had_it(case: Case) -> None:
    case.b.release(case.b.acquire(case.lease))


def the_dead_one_has_it(case: Case) -> None:
    case.dead.acquire(case.lease)
    case.let_the_third_die()


def the_dead_one_shares_it(case: Case) -> None:
    case.dead.acquire(case.lease, Want(shared=True))
    case.let_the_third_die()


def a_reference_host_erased_its_block(case: Case) -> None:
    offset = case.lease.place.at(case.lease.geometry.block_offset(4))
    case.world.disks["d"][offset : offset + 4096] = ERASED.sector(4096)


@dataclass(frozen=True)
class Operation:
    name: str
    before: tuple[Act, ...]
    act: Act


OPERATIONS = [
    Operation("acquire", (), acquire),
    Operation("acquire after another", (b_had_it,), acquire),
    Operation("acquire again", (acquire, release), acquire),
    Operation("acquire one more", (a_reference_host_erased_its_block,), acquire),
    Operation("take over", (the_dead_one_has_it,), acquire),
    Operation("acquire past a dead sharer", (the_dead_one_shares_it,), acquire),
    Operation("share", (), share),
    Operation("share after another", (b_had_it,), share),
    Operation("release", (acquire,), release),
    Operation("release and rename", (acquire,), release_renamed_alike),
    Operation("release shared", (share,), release),
    Operation("convert to exclusive", (share,), to_exclusive),
    Operation("convert past a dead sharer", (the_dead_one_shares_it, share), to_exclusive),
    Operation("convert to shared", (acquire,), to_shared),
]


def begun(operation: Operation) -> Case:
    case = Case()
    for act in operation.before:
        act(case)
    return case


def io_count(operation: Operation) -> int:
    """I/Os on the lease when nothing goes wrong."""
    case = begun(operation)
    count = case.strike(0, "fails")
    operation.act(case)
    return count()


def struck(operation: Operation, number: int, fate: str) -> Case:
    case = begun(operation)
    case.strike(number, fate)
    with pytest.raises(DiskError):
        operation.act(case)
    case.heal()
    return case


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.name)
def test_each_io_of_each_operation_may_fail(operation: Operation, fate: str) -> None:
    for number in range(1, io_count(operation) + 1):
        case = struck(operation, number, fate)
        if case.world.late:
            with pytest.raises(IOTimeout):
                case.settle()
            case.try_by_b()
            case.give_back(fate)
            case.try_by_b()
        case.settle()
        case.by_each_in_turn()


@pytest.mark.slow
@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.name)
def test_each_io_of_the_settling_may_fail_as_well(operation: Operation, fate: str) -> None:
    for number in range(1, io_count(operation) + 1):
        for second in range(1, 40):
            case = struck(operation, number, fate)
            case.give_back(fate)
            count = case.strike(second, fate)
            try:
                case.settle()
            except DiskError:
                case.heal()
                case.try_by_b()
                case.give_back(fate)
                case.try_by_b()
                case.settle()
            case.heal()
            case.by_each_in_turn()
            if count() < second:
                break
        else:
            raise AssertionError("settling has no end")


# --- what settling does ---


def test_nothing_is_begun_on_a_resource_in_doubt() -> None:
    """The rule that makes late own writes harmless: none can land behind a later own write."""
    case = begun(OPERATIONS[0])
    case.strike(6, "lands late")
    with pytest.raises(IOTimeout):
        acquire(case)
    with pytest.raises(AssertionError, match="settled first"):
        case.a.acquire(case.lease)


def late_commit() -> tuple[Case, Landed]:
    case = Case()
    case.strike(6, "lands late")
    with pytest.raises(IOTimeout):
        acquire(case)
    case.heal()
    return case, case.world.late[0]


def test_a_commit_in_doubt_is_retracted_at_once_and_its_value_kept() -> None:
    """13 item 14: "Keep the dblock values after any completed or uncertain P2 and only set RELEASED"."""
    case, _ = late_commit()
    accepted = case.cluster.block(1)
    with pytest.raises(IOTimeout):
        case.settle()
    assert case.cluster.block(1) == accepted.changed(flags=RELEASED)


def test_while_a_commit_is_in_doubt_another_host_gets_the_lease() -> None:
    case, late = late_commit()
    with pytest.raises(IOTimeout):
        case.settle()
    held = case.got_by(case.b)
    late.land()
    case.settle()
    assert case.cluster.leader().owner_id == 2 and case.cluster.leader().lver == held.lver
    case.world.run(resource.verify_held(case.b.member, held))


def test_settling_frees_only_what_is_provably_ours() -> None:
    """S1: the reference's clean-up "finds 'its' leader landed and frees it while B holds"."""
    case, late = late_commit()
    with pytest.raises(IOTimeout):
        case.settle()
    held = case.got_by(case.b)
    late.land()
    assert case.cluster.leader().owner_id == 1, "the late write covers the leader"
    case.settle()
    assert not case.cluster.leader().free
    assert [owner.host_id for owner in case.cluster.owners()] == [2]
    case.b.release(held)


def test_a_commit_that_landed_though_it_was_told_otherwise_is_freed() -> None:
    case, late = late_commit()
    late.land()
    case.settle()
    assert case.cluster.leader().free and case.cluster.owners() == []


@pytest.mark.parametrize("which", [2, 4], ids=["phase 1", "phase 2"])
def test_an_own_block_in_flight_is_waited_for_before_the_block_is_written_again(which: int) -> None:
    case = Case()
    case.strike(which, "lands late")
    with pytest.raises(BallotWriteFailed) as raised:
        acquire(case)
    case.heal()
    assert pending_of(raised.value) is case.world.late[0]
    case.world.io.clear()
    with pytest.raises(IOTimeout):
        case.settle()
    assert not [io for io in case.world.io if io[0] == "W" and io[1] >= case.lease.place.offset]


def test_a_dead_sharers_block_being_wiped_keeps_the_lease_ours_until_it_has_ended() -> None:
    """Else the host could come back, share the lease, and have its new mark wiped unseen by an exclusive owner."""
    case = Case()
    the_dead_one_shares_it(case)
    wiping = case.lease.place.at(case.lease.geometry.block_offset(3))
    case.world.verdict = lambda s: "late" if isinstance(s, Write) and s.offset == wiping else None
    with pytest.raises(IOTimeout):
        acquire(case)
    case.heal()
    with pytest.raises(IOTimeout):
        case.settle()
    back = case.cluster.join(3)
    case.cluster.keep_alive(case.a, case.b, back)
    with pytest.raises(HeldElsewhere):
        back.acquire(case.lease, Want(shared=True, nowait=True))
    case.give_back("lands late")
    case.settle()
    back.acquire(case.lease, Want(shared=True, nowait=True))


def test_a_late_value_block_never_overwrites_the_next_owners() -> None:
    case = Case()
    case.cluster = Cluster()
    case.world, case.held = case.cluster.world, None
    case.a, case.b = case.cluster.join(1), case.cluster.join(2)
    case.cluster.keep_alive(case.a, case.b)
    acquire(case)
    held = case.held
    assert held is not None
    lvb_at = case.lease.place.at(case.lease.geometry.lvb_offset)
    case.world.verdict = lambda s: "late" if isinstance(s, Write) and s.offset == lvb_at else None
    with pytest.raises(IOTimeout):
        case.a._tracked(resource.release(case.a.member, held, lvb=b"old"), 100.0)
    case.heal()
    with pytest.raises(IOTimeout):
        case.settle()
    with pytest.raises(HeldElsewhere):
        case.b.acquire(case.lease, Want(nowait=True))
    case.give_back("lands late")
    case.settle()
    theirs = case.got_by(case.b)
    case.b._tracked(resource.release(case.b.member, theirs, lvb=b"new"), 100.0)
    assert case.world.run(resource.read_lvb(case.lease, 1.0)).rstrip(b"\0") == b"new"


def test_a_failed_conversion_leaves_the_shared_lease_with_its_mark_on_the_disk() -> None:
    """The last write of a conversion takes the mark away; where it lands late, settling puts the mark back."""
    case = Case()
    share(case)
    shared = case.held
    assert shared is not None
    case.strike(7, "lands late")
    with pytest.raises(IOTimeout):
        to_exclusive(case)
    case.heal()
    case.give_back("lands late")
    assert not case.cluster.block(1).shared
    with pytest.raises(HeldElsewhere):
        case.b.acquire(case.lease, Want(nowait=True))
    case.settle()
    block = case.cluster.block(1)
    assert block.shared and block.mode_generation == shared.generation and block.released
    case.b.acquire(case.lease, Want(shared=True, nowait=True))
    case.world.run(resource.verify_held(case.a.member, shared))


def test_settling_again_what_is_settled_changes_nothing() -> None:
    case, late = late_commit()
    late.land()
    case.settle()
    before = case.cluster.area_bytes()
    case.a.doubt = []
    case.settle()
    assert case.cluster.area_bytes() == before


def test_settling_never_writes_over_a_damaged_block() -> None:
    case, late = late_commit()
    late.lose()
    at = case.lease.place.at(case.lease.geometry.block_offset(1))
    case.world.disks["d"][at] ^= 0xFF
    before = case.cluster.bytes_of(at, 4096)
    with pytest.raises(Exception) as raised:
        case.settle()
    assert getattr(raised.value, "code", 0) in (-210, -214)
    assert case.cluster.bytes_of(at, 4096) == before


# --- which I/O an error leaves in flight ---


def test_the_pending_io_is_found_in_whatever_error_carries_it() -> None:
    pending = Landed(Write("d", 0, b"", 1.0), Case().world)
    timeout = IOTimeout(operation="write", length=0, disk="d", offset=0, timeout=1.0, pending=pending)
    assert pending_of(timeout) is pending
    assert pending_of(BallotWriteFailed(resource=b"r", phase=2, cause=timeout)) is pending
    assert pending_of(BallotReadFailed(resource=b"r", phase=2, cause=DiskError(operation="read"))) is None
    assert pending_of(BallotReadFailed(resource=b"r", phase=2, cause="older")) is None
    assert pending_of(DiskError(operation="write")) is None


def test_an_operation_leaves_at_most_one_io_in_flight() -> None:
    """So that settling knows of all: a release stops at the block write that timed out (5.5 step 2 goes on)."""
    case = begun(OPERATIONS[8])
    case.world.verdict = lambda s: "late" if s.offset >= case.lease.place.offset else None
    with pytest.raises(IOTimeout):
        release(case)
    assert len(case.world.late) == 1 and case.a.doubt == case.world.late


def test_a_release_whose_block_write_fails_still_frees_the_leader() -> None:
    case = begun(OPERATIONS[8])
    case.strike(1, "fails")
    with pytest.raises(DiskError):
        release(case)
    case.heal()
    assert case.cluster.leader().free


@pytest.mark.parametrize("life", ["free", "shared", "exclusive"])
def test_a_late_block_of_our_host_s_earlier_life_is_put_right(life: str) -> None:
    """What was in flight when the machine went down may land over what the next instance wrote since."""
    case = Case()
    release_of_old = case.a.acquire(case.lease)
    late = case.cluster.bytes_of(case.lease.place.at(case.lease.geometry.block_offset(1)), 4096)
    case.a.release(release_of_old)
    case.cluster.keep_alive(case.b)
    case.a = case.cluster.join(1)
    case.cluster.keep_alive(case.a, case.b)
    case.a.release(case.a.acquire(case.lease))
    if life != "free":
        case.held = case.a.acquire(case.lease, Want(shared=life == "shared"))
    top = case.cluster.block(1)
    at = case.lease.place.at(case.lease.geometry.block_offset(1))
    case.world.disks["d"][at : at + 4096] = late
    if life == "free":
        with pytest.raises(DiskError):
            acquire(case)
    elif life == "shared":
        case.keep = case.held
        case.a.doubt = []
    else:
        release(case)
    case.settle()
    assert case.cluster.block(1).value == top.value and case.cluster.block(1).mbal == top.mbal
    assert case.cluster.block(1).shared == (life == "shared")
    case.by_each_in_turn()
