"""Bugs in deciding a version: ballots, the leader record that tells of them, and what is given up after errors."""

from __future__ import annotations

from leases.sim.mutants import Edit, Mutant

_READ_2 = "second = yield from _write_and_read(ballot, block, own_sector, wrote, phase=2)"
_READ_1 = "first = yield from _write_and_read(ballot, block, own_sector, wrote, phase=1)"
_WRITE = "yield from write_block(ballot.lease, ballot.host_id, block, own_sector, ballot.timeout)"

MUTANTS = (
    Mutant(
        "skip-second-read",
        "phase 2 does not read the other blocks after its write",
        "a ballot that was overtaken is taken for chosen",
        (Edit("paxos.ballot:decide", _READ_2, f"{_WRITE}; second = first"),),
        "contention",
    ),
    Mutant(
        "skip-first-read",
        "phase 1 does not read the other blocks after its write",
        "a value that was chosen is not found, and another one proposed",
        (Edit("paxos.ballot:decide", _READ_1, f"{_WRITE}; first = {{}}"),),
        "contention",
    ),
    Mutant(
        "forget-accepted-value",
        "phase 1 proposes the host's own value whatever others have accepted",
        "two values are chosen for one version",
        (Edit("paxos.ballot:decide", "b.lver == ballot.lver and b.accepted]", "False]"),),
        "contention",
    ),
    Mutant(
        "any-accepted-value",
        "of several accepted values the one of the smallest ballot is proposed",
        "a value that was chosen is replaced by one that was not",
        (Edit("paxos.ballot:decide", "max(votes, key", "min(votes, key"),),
        "contention",
        seed=3,
    ),
    Mutant(
        "commit-ourselves",
        "the leader names the host that ran the ballot, whatever was chosen",
        "two hosts are told that one version is theirs",
        (
            Edit(
                "paxos.election:_commit",
                "owner_id, generation, timestamp = chosen.value",
                "owner_id, generation, timestamp = member.host_id, member.generation, chosen.value[2]",
            ),
        ),
        "contention",
    ),
    Mutant(
        "chosen-for-another-is-ours",
        "who completes the ballot of another host's value takes the lease itself",
        "two owners of one version",
        (
            Edit(
                "paxos.election:_elect",
                "if chosen.value[:2] != (member.host_id, member.generation):",
                "if False:",
            ),
        ),
        "contention",
    ),
    Mutant(
        "ballot-number-not-unique",
        "the next ballot number is the highest one plus one",
        "two hosts run one ballot with two values",
        (
            Edit(
                "paxos.ballot:number_above",
                "return highest - highest % max_hosts + max_hosts + host_id",
                "return highest + 1",
            ),
            Edit("paxos.area:blocks", "if block.mbal and block.mbal % geometry", "if False and block.mbal % geometry"),
        ),
        "contention",
    ),
    Mutant(
        "trust-equal-ballot",
        "ballot numbers of different hosts in one round count as equal, and an equal one is no rival",
        "neither of two ballots gives way",
        (
            Edit(
                "paxos.ballot:_give_up_if_lost",
                "highest > ballot.mbal",
                "highest > ballot.mbal + ballot.lease.geometry.max_hosts - ballot.host_id",
            ),
        ),
        "contention",
    ),
    Mutant(
        "outvoted-in-phase-2",
        "larger ballots seen in phase 2 are ignored",
        "a value is taken for chosen that a larger ballot did not see",
        (Edit("paxos.ballot:decide", "_give_up_if_lost(ballot, second, sector)", "pass"),),
        "contention",
    ),
    Mutant(
        "newer-version-ignored",
        "a ballot does not give up when another host's block is at a later version",
        "an old version is decided once more, differently",
        (Edit("paxos.ballot:_give_up_if_lost", "any(b.lver > ballot.lver for b in others.values())", "False"),),
        "contention",
        seed=5,
    ),
    Mutant(
        "older-own-block-accepted",
        "a read in a ballot that does not show the block just written is taken for the present",
        "an older state of the disk is decided upon",
        (
            Edit(
                "paxos.ballot:_write_and_read",
                "if seen.pop(host_id, None) != block:",
                "seen.pop(host_id, None)\n    if False:",
            ),
        ),
        "an old path in a ballot",
    ),
    Mutant(
        "own-ballots-forgotten",
        "a read that shows an earlier ballot of our own is believed",
        "a ballot number is used again, and what was accepted is wiped",
        (Edit("paxos.liveness:Member.check_fresh", "if block.progress >= written.progress:", "if True:"),),
        "stale reads",
    ),
    Mutant(
        "wipe-accepted-in-phase-1",
        "a new ballot of the same version wipes the value that the host had accepted",
        "what was chosen may not be found any more",
        (Edit("paxos.ballot:decide", "accepted = own.lver == ballot.lver and own.accepted", "accepted = False"),),
        "slow contention",
        seed=2,
    ),
    Mutant(
        "own-ballot-not-counted",
        "the next ballot number is above those of the other hosts only",
        "a host's ballot numbers go back",
        (
            Edit(
                "paxos.election:_decide",
                "max(lost.mbal, mbal), True",
                "lost.mbal - 300, True",
            ),
        ),
        "contention",
    ),
    Mutant(
        "already-mine",
        "a leader that names us is believed, without a ballot",
        "a lease that was given up is held again, beside its next owner",
        (
            Edit(
                "paxos.election:_elect",
                "    for _ in range(MAX_BALLOTS):",
                "    ours, value = scene.leader, (scene.leader.owner_id, scene.leader.owner_generation)\n"
                "    if not ours.free and value == (member.host_id, member.generation):\n"
                "        block = Block.unpack(scene.own_sector)\n"
                "        return Won(scene.lease, ours, Chosen((*value, 0), block, scene.own_sector, {}, ({}, {})))\n"
                "    for _ in range(MAX_BALLOTS):",
            ),
        ),
        "contention",
    ),
    Mutant(
        "below-a-begun-version",
        "the next version is the leader's plus one, though blocks show later ones begun",
        "after a late leader write versions are decided once more",
        (Edit("paxos.lease_area:Scene.next_lver", "max(self.leader.lver + 1, self.top_lver)", "self.leader.lver + 1"),),
        "late I/O",
    ),
    Mutant(
        "contested-version-held",
        "a version that a rival took part in deciding is held",
        "the late leader write of a reference host makes it the owner of the same version",
        (Edit("paxos.election:_elect", "if not race.contested:", "if True:"),),
        "a late commit of a reference host",
    ),
    Mutant(
        "erased-block-means-nothing",
        "an erased block is not taken for a rival's whose commit may be under way",
        "the late leader write of a reference host makes it the owner of the same version",
        (Edit("paxos.election:_took_part", "or (b.erased and host not in erased_before)", ""),),
        "a late commit of a reference host",
    ),
    Mutant(
        "erase-after-failed-commit",
        "after an acquire that failed half-way the own block is erased",
        "what was chosen is not found, and chosen anew, while the leader that names us may still land",
        (
            Edit(
                "paxos.settle:_retract",
                "wanted: Block = last.changed(\n",
                "wanted: Block = last.changed(mbal=0, bal=0, inp=0, inp2=0, inp3=0, lver=0,\n",
            ),
        ),
        "late I/O",
    ),
    Mutant(
        "settle-without-reaping",
        "settling does not wait for the I/O in flight",
        "an own write lands behind later ones",
        (Edit("paxos.settle:settle", "yield from _reaped(member, pending)", "pass"),),
        "late I/O",
    ),
    Mutant(
        "in-flight-forgotten",
        "nobody is told what an operation's error left in flight",
        "an own write lands behind later ones",
        (
            Edit(
                "paxos.settle:pending_of",
                "return error.pending if isinstance(error, IOTimeout) else None",
                "return None",
            ),
        ),
        "late I/O",
    ),
    Mutant(
        "begun-while-unsettled",
        "after an I/O error the resource is used again at once",
        "an own write lands behind later ones",
        (Edit("leases.sim.host:Daemon._doubtful", "if isinstance(error, DiskError):", "if False:"),),
        "late I/O",
    ),
    Mutant(
        "release-goes-on-after-timeout",
        "a release goes on though the write of its block is still in flight",
        "two I/Os of one operation are in flight and only one is known",
        (Edit("paxos.resource:release", "except IOTimeout:\n        raise\n    ", ""),),
        "two late steps of one release",
    ),
    Mutant(
        "clean-up-frees-anything",
        "settling frees the leader whoever owns it",
        "a lease that is held reads free",
        (
            Edit(
                "paxos.settle:settle",
                "    scene = yield from survey(lease, member.host_id, member.timing.io_timeout)\n",
                "    scene = yield from survey(lease, member.host_id, member.timing.io_timeout)\n"
                "    yield from free_leader(member, scene.lease, scene.leader)\n    return\n",
            ),
        ),
        "late I/O under long holds",
    ),
    Mutant(
        "release-without-looking",
        "a release frees the leader whatever it says",
        "the leader goes back to an earlier version",
        (Edit("paxos.election:free_leader", "if seen != ours and seen.lver >= ours.lver:", "if False:"),),
        "slow contention, watched",
    ),
)
