"""Disk Paxos, sentence by sentence (Gafni and Lamport, "Disk Paxos", 2003; ondisk.md 5.2 P1 and P2).

The paper's invariant: if a value was chosen at ballot b, every value accepted at a ballot > b is the same.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from paxos.ballot import Ballot, BallotLost, Chosen, Value, decide, number_above
from paxos.errors import BallotReadFailed, BallotWriteFailed, BlockChecksumError
from paxos.geometry import MAX_HOSTS, MIB, Geometry, Place
from paxos.lease_area import LeaseArea
from paxos.records import RELEASED, SHARED, Block
from paxos.steps import Read, Write
from tests.support.memory import MemoryWorld, Running

GEOMETRY = Geometry(4096, MIB)
SLOTS = GEOMETRY.max_hosts
LEASE = LeaseArea(b"LS", b"r", Place("d"), GEOMETRY)
LVER = 5


class Table:
    """The blocks of one lease in memory, and ballots on them."""

    def __init__(self) -> None:
        self.world = MemoryWorld(d=MIB)

    def block(self, host: int) -> Block:
        return Block.unpack(self.sector(host))

    def sector(self, host: int) -> bytes:
        at = GEOMETRY.block_offset(host)
        return bytes(self.world.disks["d"][at : at + 4096])

    def put(self, host: int, **fields: int) -> Block:
        block = Block().changed(**fields)
        at = GEOMETRY.block_offset(host)
        self.world.disks["d"][at : at + 4096] = block.sector(4096)
        return block

    def ballot(self, host: int, mbal: int, lver: int = LVER, keep_mark: bool = False) -> Ballot:
        return Ballot(LEASE, host, lver, mbal, (host, 1, 100 + host), 8, keep_mark, 1.0)

    def start(self, host: int, mbal: int, lver: int = LVER, keep_mark: bool = False) -> Running:
        return self.world.start(
            decide(self.ballot(host, mbal, lver, keep_mark), self.sector(host), lambda _block: None)
        )

    def decide(self, host: int, mbal: int, lver: int = LVER, keep_mark: bool = False) -> Chosen:
        chosen: Chosen = self.start(host, mbal, lver, keep_mark).finish()
        return chosen


@pytest.fixture
def table() -> Table:
    return Table()


def number(host: int, round_: int) -> int:
    return round_ * SLOTS + host


# --- ballot numbers ---


def test_the_first_ballot_number_is_the_host_id() -> None:
    """5.2: "max_mbal == 0: mbal = h"."""
    assert number_above(0, 7, 2000) == 7


def test_the_reference_s_own_examples() -> None:
    """5.2: "host 1, 2000 slots: 1, 2001, 4001, ...; host 2 after 1: 2002"."""
    assert [number_above(n, 1, 2000) for n in (0, 1, 2001)] == [1, 2001, 4001]
    assert number_above(1, 2, 2000) == 2002


@pytest.mark.parametrize("max_hosts", sorted(set(MAX_HOSTS.values())))
def test_a_number_is_above_all_seen_and_never_another_host_s(max_hosts: int) -> None:
    dice = random.Random(max_hosts)
    for _ in range(300):
        highest, host = dice.randrange(0, 10**9), dice.randint(1, max_hosts)
        chosen = number_above(highest, host, max_hosts)
        assert chosen > highest and chosen % max_hosts == host % max_hosts


# --- one host alone ---


def test_a_ballot_is_write_read_write_read(table: Table) -> None:
    table.decide(3, 3)
    at = GEOMETRY.block_offset(3)
    assert table.world.io == [("W", at, 4096), ("R", 0, 16 * 4096)] * 2


def test_alone_a_host_s_own_value_is_chosen(table: Table) -> None:
    chosen = table.decide(3, 3)
    assert chosen.value == (3, 1, 103)
    assert table.block(3) == chosen.block and table.sector(3) == chosen.sector
    block = table.block(3)
    assert (block.mbal, block.bal, block.lver, block.flags, block.value) == (3, 3, LVER, 0, (3, 1, 103))


def test_phase_1_writes_the_number_and_no_value(table: Table) -> None:
    """P1: "dblock{mbal, bal 0, inp 0,0,0, lver next_lver, flags 0}"."""
    running = table.start(3, 3)
    running.advance()
    assert table.block(3) == Block().changed(mbal=3, lver=LVER)


def test_phase_1_takes_nothing_over_from_earlier_versions(table: Table) -> None:
    table.put(3, mbal=3, bal=3, inp=3, inp2=1, inp3=9, lver=LVER - 1, flags=RELEASED)
    running = table.start(3, number(3, 1))
    running.advance()
    assert table.block(3) == Block().changed(mbal=number(3, 1), lver=LVER)


def test_an_accepted_value_of_the_same_version_survives_phase_1(table: Table) -> None:
    """13 item 15: "P1 of a retry wipes the host's own accepted bal/inp ... (textbook disk paxos keeps them)"."""
    before = table.put(3, mbal=3, bal=3, inp=4, inp2=1, inp3=9, lver=LVER, flags=RELEASED)
    running = table.start(3, number(3, 1))
    running.advance()
    assert table.block(3) == before.changed(mbal=number(3, 1), flags=0)
    assert running.finish().value == (4, 1, 9)


@pytest.mark.parametrize(("keep", "left"), [(True, SHARED), (False, 0)])
def test_a_shared_mark_stays_only_while_converting(table: Table, keep: bool, left: int) -> None:
    """6.4: "both ballot writes keep the mode block ... (else a crash would lose the shared lease)"."""
    table.put(3, mode_flags=SHARED, mode_generation=6)
    running = table.start(3, 3, keep_mark=keep)
    while running.step is not None:
        running.advance()
        if running.step is not None:
            assert table.block(3).mode_flags in (SHARED, left)
    assert table.block(3).mode_flags == left
    assert table.block(3).mode_generation == (6 if keep else 0)


def test_other_bytes_of_the_own_sector_stay(table: Table) -> None:
    at = GEOMETRY.block_offset(3)
    table.world.disks["d"][at + 200 : at + 204] = b"keep"
    table.decide(3, 3)
    assert table.sector(3)[200:204] == b"keep"


def test_shared_marks_of_others_are_told_whatever_their_version(table: Table) -> None:
    """P1: "mode block SHARED -> remember host q+1 as shared holder (any lver)"."""
    table.put(4, mode_flags=SHARED, mode_generation=2)
    table.put(5, mbal=5, lver=1, mode_flags=SHARED, mode_generation=3)
    assert table.decide(3, number(3, 1)).marks == {4: 2, 5: 3}


# --- other hosts' votes ---


def test_a_value_that_another_accepted_is_repeated(table: Table) -> None:
    """P1: any value a competitor may have had accepted "for this lver is visible to us, so we must propose it"."""
    table.put(4, mbal=4, bal=4, inp=4, inp2=2, inp3=77, lver=LVER)
    assert table.decide(3, number(3, 1)).value == (4, 2, 77)


def test_of_several_accepted_values_the_one_with_the_largest_ballot_is_repeated(table: Table) -> None:
    table.put(4, mbal=number(4, 1), bal=number(4, 1), inp=4, inp2=1, inp3=1, lver=LVER)
    table.put(5, mbal=number(5, 2), bal=number(5, 2), inp=5, inp2=1, inp3=2, lver=LVER)
    table.put(6, mbal=number(6, 1), bal=number(6, 0), inp=6, inp2=1, inp3=3, lver=LVER)
    assert table.decide(3, number(3, 3)).value == (5, 1, 2)


def test_a_released_vote_is_still_a_vote(table: Table) -> None:
    """5.5: "a slower competitor's ballot for the same lver still has to find them"."""
    table.put(4, mbal=4, bal=4, inp=4, inp2=1, inp3=1, lver=LVER, flags=RELEASED)
    assert table.decide(3, number(3, 1)).value == (4, 1, 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"mbal": 4, "bal": 4, "inp": 4, "inp2": 1, "inp3": 1, "lver": LVER - 1},
        {"mbal": 4, "bal": 0, "inp": 4, "inp2": 1, "inp3": 1, "lver": LVER},
        {"mbal": 4, "bal": 4, "inp": 0, "inp2": 0, "inp3": 0, "lver": LVER},
        {"flags": RELEASED},
    ],
    ids=["earlier version", "not accepted", "no value", "erased"],
)
def test_what_is_no_vote_for_this_version_is_not_repeated(table: Table, fields: dict[str, int]) -> None:
    table.put(4, **fields)
    assert table.decide(3, number(3, 1)).value == (3, 1, 103)


def test_a_vote_that_appears_after_phase_1_does_not_change_the_proposal(table: Table) -> None:
    """It has a smaller number, so it will see ours and give up."""
    running = table.start(3, number(3, 1))
    running.advance()
    running.advance()
    table.put(4, mbal=4, bal=4, inp=4, inp2=1, inp3=1, lver=LVER)
    assert running.finish().value == (3, 1, 103)


# --- giving up ---


@pytest.mark.parametrize("phase", [1, 2])
def test_a_larger_ballot_number_seen_in_either_phase_ends_the_ballot(table: Table, phase: int) -> None:
    running = table.start(3, 3)
    for _ in range(1 if phase == 1 else 3):
        running.advance()
    table.put(4, mbal=number(4, 7), lver=LVER)
    with pytest.raises(BallotLost) as raised:
        running.finish()
    assert (raised.value.mbal, raised.value.newer) == (number(4, 7), False)
    assert raised.value.sector == table.sector(3), "it knows what it left on the disk"
    assert table.block(3).accepted == (phase == 2)


@pytest.mark.parametrize("phase", [1, 2])
def test_a_later_version_seen_in_either_phase_ends_the_ballot(table: Table, phase: int) -> None:
    running = table.start(3, number(3, 9))
    for _ in range(1 if phase == 1 else 3):
        running.advance()
    table.put(4, mbal=4, lver=LVER + 1)
    with pytest.raises(BallotLost) as raised:
        running.finish()
    assert raised.value.newer


def test_a_larger_number_of_an_earlier_version_is_nothing_to_us(table: Table) -> None:
    table.put(4, mbal=number(4, 7), lver=LVER - 1)
    assert table.decide(3, 3).value == (3, 1, 103)


# --- what a SAN does not give by itself ---


def test_a_read_that_shows_an_older_own_block_is_not_believed(table: Table) -> None:
    old = table.sector(3)
    running = table.start(3, 3)
    running.advance()
    at = GEOMETRY.block_offset(3)
    table.world.disks["d"][at : at + 4096] = old
    with pytest.raises(BallotReadFailed):
        running.finish()


def test_a_damaged_block_of_another_host_ends_the_ballot(table: Table) -> None:
    """13 item 3: it "may hold the accepted value or a higher mbal"."""
    table.world.disks["d"][GEOMETRY.block_offset(5)] = 1
    with pytest.raises(BlockChecksumError):
        table.decide(3, 3)


@pytest.mark.parametrize(("kind", "error"), [(Write, BallotWriteFailed), (Read, BallotReadFailed)])
@pytest.mark.parametrize("phase", [1, 2])
def test_an_io_error_says_in_which_phase(table: Table, kind: type, error: type[Exception], phase: int) -> None:
    count = 0

    def verdict(step: Read | Write) -> str | None:
        nonlocal count
        count += isinstance(step, kind)
        return "fail" if isinstance(step, kind) and count == phase else None

    table.world.verdict = verdict
    with pytest.raises(error) as raised:
        table.decide(3, 3)
    assert getattr(raised.value, "phase", None) == phase


# --- the invariant, by many interleavings ---


def rounds(dice: random.Random, table: Table, hosts: list[int]) -> Iterator[tuple[int, int, Value]]:
    """Ballots of all hosts interleaved at random, each with numbers above what it saw; yields what was chosen."""
    running: dict[int, tuple[int, Running]] = {}
    seen = dict.fromkeys(hosts, 0)
    for _ in range(300):
        host = dice.choice(hosts)
        if host not in running:
            mbal = number_above(max(seen[host], table.block(host).mbal), host, SLOTS)
            running[host] = (mbal, table.start(host, mbal))
        elif dice.random() < 0.02:  # it stops for good where it stands, and is started anew
            mbal, stopped = running.pop(host)
            stopped.protocol.close()
            seen[host] = mbal
            continue
        mbal, one = running[host]
        one.advance()
        if one.step is None:
            del running[host]
            seen[host] = mbal
            if isinstance(one.failure, BallotLost):
                seen[host] = max(mbal, one.failure.mbal)
            elif one.failure is not None:
                raise one.failure
            else:
                yield host, mbal, one.result.value


@pytest.mark.parametrize("seed", range(40))
def test_once_chosen_a_value_is_chosen_for_ever_whoever_stops_whenever(seed: int) -> None:
    table = Table()
    dice = random.Random(seed)
    chosen = {value for _, _, value in rounds(dice, table, [1, 2, 3, 4][: dice.randint(2, 4)])}
    assert len(chosen) <= 1
