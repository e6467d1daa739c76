"""Bugs in telling who may still hold a lease: owners, shared holders, and the silence of hosts."""

from __future__ import annotations

from leases.sim.mutants import Edit, Mutant

_MARK = """\
    block = block.changed(mode_flags=SHARED, mode_generation=member.generation)
    yield from write_block(won.lease, member.host_id, block, chosen.sector, member.timing.io_timeout)
"""
_CONVERT = """\
    block = block.changed(mode_flags=SHARED, mode_generation=held.generation)
    yield from _rewrite_block(member, held, block)
"""

MUTANTS = (
    Mutant(
        "take-over-early",
        "the owner of a lease counts as dead one second before its time",
        "a lease changes hands before the contract allows it",
        (Edit("paxos.ownership:wait_for_end", "if left < 0:", "if left < 1:"),),
        "resets",
    ),
    Mutant(
        "no-time-for-the-watchdog",
        "a host is dead when its renewals have failed, not when its watchdog has fired",
        "a lease is taken from a host whose clients still run",
        (Edit("paxos.timing:Timing.host_dead", "self.renewal_fail + self.fire_timeout", "self.renewal_fail"),),
        "deaths",
    ),
    Mutant(
        "judge-by-own-io-timeout",
        "another host is judged by our io_timeout, not by its own",
        "a host that may take longer is taken for dead",
        (Edit("paxos.timing:judging_io_timeout", "if stored == 0:", "if True:"),),
        "two io_timeouts",
    ),
    Mutant(
        "death-counted-from-first-look",
        "an owner's silence is counted from our first look at it",
        "an owner that is late once is taken for dead",
        (
            Edit(
                "paxos.ownership:wait_for_end",
                "known.last_live if known else start",
                "known.first_check if known else start",
            ),
        ),
        "deaths",
    ),
    Mutant(
        "same-generation-taken-for-a-new-one",
        "a host id of the same generation counts as taken anew",
        "leases are taken from the living",
        (Edit("paxos.ownership:_ended", "sector.owner_generation > claim", "sector.owner_generation >= claim"),),
        "contention",
    ),
    Mutant(
        "free-record-believed-at-once",
        "a free host lease of an earlier generation counts as the owner's end",
        "an old record, read by mistake, takes a lease from the living",
        (
            Edit(
                "paxos.ownership:_ended",
                "(sector.free and sector.owner_generation == claim.generation)",
                "sector.free",
            ),
        ),
        "an old record of the owner",
    ),
    Mutant(
        "nobody-is-asked",
        "whoever the leader names is not asked whether it still holds the lease",
        "leases are taken from the living",
        (
            Edit(
                "paxos.ownership:claims",
                "return list(_of_leader(scene, member)) + list(_of_blocks(scene, member))",
                "return []",
            ),
        ),
        "contention",
    ),
    Mutant(
        "released-ignored",
        "RELEASED in the owner's block means nothing",
        "a lease that was given up stays refused as long as its last owner lives",
        (Edit("paxos.lease_area:Scene.released_by_owner", "block.released\n", "False\n"),),
        "a competitor wrote the leader",
    ),
    Mutant(
        "released-by-anybody",
        "RELEASED in any host's block of this version counts as the owner's",
        "a lease is taken because somebody else gave it up",
        (
            Edit(
                "paxos.lease_area:Scene.released_by_owner",
                "    block = self.blocks.get(self.leader.owner_id, EMPTY_BLOCK)\n",
                "    if any(b.released and b.lver == self.leader.lver for b in self.blocks.values()):\n"
                "        return True\n"
                "    block = self.blocks.get(self.leader.owner_id, EMPTY_BLOCK)\n",
            ),
        ),
        "a competitor that gave up",
    ),
    Mutant(
        "release-under-way-not-awaited",
        "an owner that says RELEASED is not given the time to free the leader",
        "its last write sets the leader back",
        (Edit("paxos.ownership:_settled_release", "pause = 0.005", "return True"),),
        "slow contention, watched",
    ),
    Mutant(
        "shrunk-num-hosts-believed",
        "only the blocks below the leader's num_hosts are looked at",
        "after a late leader write the holder's block is not seen",
        (
            Edit(
                "paxos.lease_area:survey",
                "dict(blocks(view, geometry, geometry.max_hosts, lease.place))",
                "dict(blocks(view, geometry, leader.num_hosts, lease.place))",
            ),
        ),
        "old leaders return",
        seed=2,
    ),
    Mutant(
        "live-sharer-cleared",
        "every shared mark counts as a dead host's",
        "a lease is held exclusively beside shared holders",
        (
            Edit(
                "paxos.liveness:HostTable.shared_holder_alive",
                "if history is None:",
                "if True:\n        return False\n    if history is None:",
            ),
        ),
        "sharing",
    ),
    Mutant(
        "one-silent-look-is-death",
        "a shared holder that was not seen to renew in the last look is dead",
        "its mark is wiped while it holds",
        (
            Edit(
                "paxos.liveness:HostTable.shared_holder_alive",
                "history.last_check <= history.dead_at(self._timing.fire_timeout)",
                "history.last_live == history.last_check",
            ),
        ),
        "sharing",
    ),
    Mutant(
        "silence-while-not-looking",
        "a shared holder's silence is counted also while we did not look",
        "after a pause of ours the living are taken for dead",
        (
            Edit(
                "paxos.resource:_clear_shared_holders",
                "if member.hosts.shared_holder_alive(host_id, generation):",
                "if won.leader.write_timestamp <= member.hosts.get(host_id).dead_at(member.timing.fire_timeout):",
            ),
        ),
        "two io_timeouts, sharing",
    ),
    Mutant(
        "mark-of-a-newcomer-cleared",
        "a shared mark of a generation that we have not seen yet counts as a dead host's",
        "the mark of a host that has just joined is wiped",
        (
            Edit(
                "paxos.liveness:HostTable.shared_holder_alive", "return history.generation < generation", "return False"
            ),
        ),
        "newcomers",
    ),
    Mutant(
        "marks-ignored",
        "an exclusive acquirer does not look at shared marks",
        "a lease is held exclusively beside shared holders",
        (Edit("paxos.ballot:decide", "for host, b in second.items() if b.shared", "for host, b in () if b.shared"),),
        "sharing",
    ),
    Mutant(
        "mark-after-the-leader-is-free",
        "a shared holder sets its mark only after it has freed the leader",
        "an exclusive acquirer gets in between",
        (
            Edit(
                "paxos.resource:_mark_shared", "mode_flags=SHARED, mode_generation=member.generation)", "mode_flags=0)"
            ),
            Edit("paxos.resource:_mark_shared", "    return _held(", f"{_MARK}    return _held("),
        ),
        "sharing",
    ),
    Mutant(
        "mark-not-looked-at",
        "a shared holder does not look whether its mark is on the disk",
        "nobody sees that it holds the lease",
        (Edit("paxos.resource:_write_mark", "if seen != block:", "if False:"),),
        "a mark that went astray",
    ),
    Mutant(
        "converted-after-the-leader-is-free",
        "an exclusive holder that goes shared frees the leader before it sets its mark",
        "an exclusive acquirer gets in between",
        (
            Edit(
                "paxos.resource:convert_to_shared",
                "flags=RELEASED, mode_flags=SHARED, mode_generation=held.generation)",
                "flags=RELEASED)",
            ),
            Edit("paxos.resource:convert_to_shared", "    return replace(", f"{_CONVERT}    return replace("),
        ),
        "sharing",
        seed=2,
    ),
    Mutant(
        "mark-lost-in-conversion",
        "a shared holder that wants the lease exclusively drops its mark for the ballot",
        "a refused conversion leaves a shared holder that nobody sees",
        (Edit("paxos.resource:convert_to_exclusive", "keep_mark=True", "keep_mark=False"),),
        "sharing",
    ),
    Mutant(
        "shared-release-from-memory",
        "a shared holder's release writes its block as it was when it was granted",
        "ballots that it ran since are undone",
        (Edit("paxos.resource:release", "released = block.changed(", "released = held.block.changed("),),
        "sharing",
    ),
)
