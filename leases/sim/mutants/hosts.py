"""Bugs in owning a host id, in renewing it, and in what the keeper does when that fails."""

from __future__ import annotations

from leases.sim.mutants import Edit, Mutant

MUTANTS = (
    Mutant(
        "no-new-generation",
        "a host that joins keeps the generation of its predecessor",
        "two owners of a host id can't be told apart",
        (Edit("paxos.host_lease:acquire", "found.owner_generation + 1", "max(found.owner_generation, 1)"),),
        "rejoining",
    ),
    Mutant(
        "join-without-settling",
        "a host that joins does not wait before it looks again",
        "two hosts take one host id at once",
        (Edit("paxos.host_lease:acquire", "yield from sleep(other.join_settle)", "pass"),),
        "two that join at once",
    ),
    Mutant(
        "join-without-final-read",
        "a host that joins does not look again at what it wrote",
        "two hosts take one host id at once",
        (Edit("paxos.host_lease:acquire", "if seen != record:", "if False:"),),
        "two that join at once",
    ),
    Mutant(
        "join-beside-the-living",
        "a host that joins does not wait for the death of the id's owner",
        "a host id has two owners",
        (Edit("paxos.host_lease:acquire", "if not found.free and not", "if False and not"),),
        "one host id for two",
    ),
    Mutant(
        "join-early",
        "the owner of a host id counts as dead one second before its time",
        "a host id changes hands before the contract allows it",
        (Edit("paxos.host_lease:_wait_for_death", "+ other.host_dead\n", "+ other.host_dead - 1\n"),),
        "one host id for two",
    ),
    Mutant(
        "join-owner-not-watched",
        "whoever waits for a host id does not check that its owner stayed silent",
        "a host id is taken from the living",
        (Edit("paxos.host_lease:_wait_for_death", "if again != found and not again.free:", "if False:"),),
        "one host id for two",
    ),
    Mutant(
        "renew-after-failed-check",
        "a renewal writes though the host lease is somebody else's",
        "a host id goes back to an owner that lost it",
        (Edit("paxos.host_lease:_check_ours", "if _is_late_write_of(lease.previous, found):", "if True:"),),
        "twins",
    ),
    Mutant(
        "loss-is-only-trouble",
        "a host that lost its host id goes on as if a renewal had failed",
        "it uses leases that are not its own any more",
        (Edit("leases.keeper.decisions:keep_renewing", "            vitals.fail(corruption)\n", ""),),
        "twins",
    ),
    Mutant(
        "unseen-renewal-counts",
        "a renewal that is not on the disk when it is looked for still counts",
        "the watchdog is fed longer than others wait",
        (
            Edit(
                "leases.keeper.decisions:keep_renewing",
                "min(vitals.last_success, lease.confirmed_success)",
                "vitals.last_success",
            ),
        ),
        "the ladder",
    ),
    Mutant(
        "deadline-from-after-the-write",
        "deadlines count from when a renewal was written, not from when it was about to be",
        "others count from before",
        (
            Edit(
                "paxos.host_lease:renew",
                "    done = yield from now()\n",
                "    done = lease.last_success = yield from now()\n",
            ),
        ),
        "the ladder",
    ),
    Mutant(
        "fed-without-renewal",
        "a failed renewal feeds the watchdog",
        "a host outlives its leases",
        (
            Edit(
                "leases.keeper.decisions:keep_renewing",
                "            vitals.trouble = trouble\n",
                "            vitals.trouble = trouble\n            vitals.last_success = yield from now()\n"
                "            hands.renewed(Renewal(0, 0.0, 0.0, None), vitals.expires)\n",
            ),
        ),
        "deaths",
    ),
    Mutant(
        "fed-too-long",
        "the watchdog is fed for two renewal intervals more than it may be",
        "a host outlives its leases",
        (
            Edit(
                "leases.keeper.decisions:Vitals.expires",
                "self.timing.renewal_fail",
                "self.timing.renewal_fail + 4 * self.timing.io_timeout",
            ),
        ),
        "lost paths",
    ),
    Mutant(
        "no-margin-for-clocks",
        "the watchdog is fed up to the last moment",
        "clocks that run apart let a lease change hands too early",
        (
            Edit(
                "paxos.timing:Timing.feed_margin",
                "max(CLOCK_RATE_ERROR * self.host_dead, min(10.0, 2 * self.io_timeout))",
                "0.0",
            ),
        ),
        "clocks that run apart",
        seed=2,
    ),
    Mutant(
        "lateness-not-latched",
        "a renewal that comes too late, but before anybody has looked, is as good as one in time",
        "leases are used that others may have taken",
        (Edit("leases.keeper.decisions:keep_renewing", "            vitals.check_late(lease.last_success)\n", ""),),
        "the ladder",
    ),
    Mutant(
        "nobody-watches",
        "the guard does not look whether renewals are late",
        "recovery does not begin when renewals hang",
        (Edit("leases.keeper.decisions:stand_guard", "        vitals.check_late(at)\n", ""),),
        "the ladder",
    ),
    Mutant(
        "success-cancels-recovery",
        "a renewal that succeeds during recovery counts",
        "holders that were being stopped are forgotten, or stopped later than they must be",
        (Edit("leases.keeper.decisions:keep_renewing", "if vitals.failure is None:", "if True:"),),
        "the ladder",
    ),
    Mutant(
        "never-sigkill",
        "holders are never stopped by SIGKILL",
        "one that ignores SIGTERM goes on until the machine is reset",
        (
            Edit(
                "leases.keeper.decisions:next_stop", "Stop.TERMINATE if at < kill_from else Stop.KILL", "Stop.TERMINATE"
            ),
        ),
        "the ladder",
    ),
    Mutant(
        "gives-up-on-holders",
        "recovery ends after one round, whoever is still there",
        "the watchdog is disarmed while leases are used",
        (
            Edit(
                "leases.keeper.decisions:stop_holders",
                "while holders := hands.holders():",
                "for holders in [hands.holders()]:",
            ),
        ),
        "deaths",
    ),
    Mutant(
        "pause-not-noticed",
        "a host whose clock stood still does not notice",
        "it uses leases that others have taken meanwhile",
        (
            Edit(
                "paxos.liveness:HostTable._paused_for",
                "return ahead if ahead > self._timing.pause_suspected else 0.0",
                "return 0.0",
            ),
        ),
        "frozen whole",
    ),
    Mutant(
        "verify-checks-nothing",
        "verifying a lease finds it ours whatever the disk says",
        "a host that stood still uses leases that others have taken",
        (Edit("paxos.resource:verify_held", "if not ours:", "if False:"),),
        "frozen whole",
    ),
    Mutant(
        "pause-forgotten",
        "after a pause the leases are not looked at",
        "a host that stood still uses leases that others have taken",
        (Edit("leases.keeper.decisions:keep_renewing", "if paused_for and (yield", "if False and (yield"),),
        "frozen whole",
    ),
    Mutant(
        "parked-buffer-reused",
        "the buffer of an I/O that timed out is given back at once",
        "what lands late is what another I/O has put there",
        (
            Edit(
                "paxos.disk.channel:Channel.park",
                "    transfer.waiter = None\n",
                "    transfer.waiter = None\n    transfer.buffer.give_back()\n",
            ),
        ),
        "an engine and a slow disk",
    ),
)
