"""Disk Paxos: decide one value, once, though any participant may stop at any moment (Gafni and Lamport, 2003).

Each version (`lver`) of a lease is one instance. Each host p has a block on the disk that only p writes, with the
paper's own letters:

    mbal   the highest ballot that p has begun        bal   the ballot at which p accepted inp (0: none)
    inp    the value p accepted: host id, generation, timestamp of the lease's next owner

    phase 1   write mbal; read all blocks. A larger mbal anywhere: give up this ballot.
              Otherwise the value to propose is the inp with the largest bal, if there is any; else one's own.
    phase 2   write bal = mbal and inp; read all blocks. A larger mbal anywhere: give up.
              Otherwise inp is *chosen*: every later ballot will read it in its phase 1 and repeat it.

The invariant is the paper's: if a value was chosen at ballot b, every value accepted at a ballot > b is the same.
It holds because a block is written before the others are read, so of two ballots at least one sees the other.

What the paper takes for granted and a SAN does not give, is checked: each read must show the block just written,
else it shows an older state of the disk. Two things the reference does are not done here (ondisk.md 13 items 14,
15): an accepted value is never wiped, neither by a new phase 1 of the same version nor after a failure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paxos.area import blocks
from paxos.errors import BallotReadFailed, BallotWriteFailed, DiskError
from paxos.lease_area import LeaseArea, write_block
from paxos.records import Block
from paxos.steps import Steps, read

#: owner's host id, generation, timestamp
Value = tuple[int, int, int]


def number_above(highest: int, host_id: int, max_hosts: int) -> int:
    """The smallest ballot number of `host_id` above every number seen; never another host's (ondisk.md 5.2)."""
    if highest == 0:
        return host_id
    return highest - highest % max_hosts + max_hosts + host_id


class BallotLost(Exception):
    """Another host's block stands above this ballot: a larger `mbal`, or (`newer`) a later version."""

    def __init__(self, mbal: int, newer: bool, sector: bytes) -> None:
        super().__init__(mbal, newer)
        self.mbal = mbal
        self.newer = newer
        #: the own block's sector as this ballot left it
        self.sector = sector


@dataclass(frozen=True, slots=True)
class Ballot:
    """One attempt: host `host_id` proposes `value` for version `lver` with ballot number `mbal`."""

    lease: LeaseArea
    host_id: int
    lver: int
    mbal: int
    value: Value
    #: how many hosts' blocks to read
    num_hosts: int
    #: whether the own shared mark stays in the block (converting)
    keep_mark: bool
    #: seconds for each I/O
    timeout: float


@dataclass(frozen=True, slots=True)
class Chosen:
    """A value was chosen."""

    value: Value
    #: the own block as it lies on the disk now, and its whole sector
    block: Block
    sector: bytes
    #: generation by host of the others' shared marks
    marks: dict[int, int]
    #: the other hosts' used blocks, as seen in phase 1 and in phase 2
    seen: tuple[dict[int, Block], dict[int, Block]]


def decide(ballot: Ballot, own_sector: bytes, wrote: Callable[[Block], object]) -> Steps[Chosen]:
    """Run both phases. `own_sector` is the host's block sector as it lies on the disk; `wrote` is told of each block
    that was written.

    Raises BallotLost, BallotReadFailed, BallotWriteFailed, BlockChecksumError.
    """
    own = Block.unpack(own_sector)
    accepted = own.lver == ballot.lver and own.accepted
    block = own.changed(
        mbal=ballot.mbal,
        bal=own.bal if accepted else 0,
        inp=own.inp if accepted else 0,
        inp2=own.inp2 if accepted else 0,
        inp3=own.inp3 if accepted else 0,
        lver=ballot.lver,
        flags=0,
        mode_flags=own.mode_flags if ballot.keep_mark else 0,
        mode_generation=own.mode_generation if ballot.keep_mark else 0,
    )
    first = yield from _write_and_read(ballot, block, own_sector, wrote, phase=1)
    _give_up_if_lost(ballot, first, block.into(own_sector))

    votes = [b for b in (*first.values(), block) if b.lver == ballot.lver and b.accepted]
    value = max(votes, key=lambda b: b.bal).value if votes else ballot.value
    block = block.changed(bal=ballot.mbal, inp=value[0], inp2=value[1], inp3=value[2])
    second = yield from _write_and_read(ballot, block, own_sector, wrote, phase=2)
    sector = block.into(own_sector)
    _give_up_if_lost(ballot, second, sector)
    return Chosen(
        value=value,
        block=block,
        sector=sector,
        marks={host: b.mode_generation for host, b in second.items() if b.shared},
        seen=(first, second),
    )


def _write_and_read(
    ballot: Ballot, block: Block, own_sector: bytes, wrote: Callable[[Block], object], phase: int
) -> Steps[dict[int, Block]]:
    """Write the own block, then read everybody's; returns the others' used blocks by host id."""
    lease, host_id = ballot.lease, ballot.host_id
    try:
        yield from write_block(lease, host_id, block, own_sector, ballot.timeout)
    except DiskError as cause:
        raise BallotWriteFailed(resource=lease.name, phase=phase, cause=cause) from cause
    wrote(block)
    try:
        length = lease.geometry.ballot_length(ballot.num_hosts)
        view = yield from read(lease.place.disk, lease.place.offset, length, ballot.timeout)
    except DiskError as cause:
        raise BallotReadFailed(resource=lease.name, phase=phase, cause=cause) from cause
    seen = dict(blocks(view, lease.geometry, ballot.num_hosts, lease.place))
    if seen.pop(host_id, None) != block:
        raise BallotReadFailed(resource=lease.name, phase=phase, cause="the disk shows an older block of this host")
    return seen


def _give_up_if_lost(ballot: Ballot, others: dict[int, Block], sector: bytes) -> None:
    newer = any(b.lver > ballot.lver for b in others.values())
    highest = max((b.mbal for b in others.values() if b.lver >= ballot.lver), default=0)
    if newer or highest > ballot.mbal:
        raise BallotLost(highest, newer, sector)
