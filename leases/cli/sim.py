"""`leasehold sim`: the protocols that ship, on simulated hosts, clocks and disks, with every fault there is.

Exit codes: 0 when no rule was broken, 1 when one was; of `--mutants`, 0 when none survived, 1 when one did.
"""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from leases.cli.arguments import Parser, add_json, positive, seconds
from leases.cli.notices import Notices
from leases.cli.output import print_facts, print_json, print_line
from leases.sim.cluster import Outcome, Setup
from leases.sim.faults import PROFILES, Faults
from leases.sim.host import Work
from leases.sim.runs import Result, Totals, campaign, cores, simulate
from leases.sim.shrink import shrink

#: a rule was broken
BROKEN = 1
#: events shown of a run that failed
_SHOWN = 120


def parser() -> Parser:
    parser = Parser(
        "leasehold sim",
        description="Simulate clusters in virtual time: hosts that run the protocols as they ship, on one disk, with "
        "faults. Everything follows from the seed. Rules are checked at every event: one exclusive holder, no grant "
        "before the old owner's watchdog, tokens that grow, and more.",
    )
    which = parser.add_argument_group("what is simulated")
    which.add_argument("--seed", type=int, default=1, metavar="N", help="the run's seed (1)")
    which.add_argument("--seeds", type=_seeds, metavar="A-B", help="a run for each seed from A to B instead")
    which.add_argument("--hosts", type=positive, default=3, metavar="N", help="hosts of each cluster (3)")
    which.add_argument("--leases", type=positive, default=3, metavar="N", help="leases on the volume (3)")
    which.add_argument("--clients", type=positive, default=3, metavar="N", help="clients of each host (3)")
    which.add_argument("--hours", type=seconds, default=1.0, metavar="H", help="virtual hours (1)")
    which.add_argument(
        "--period", type=seconds, default=3.0, metavar="S", help="seconds between two uses by a client (3)"
    )
    which.add_argument("--hold", type=seconds, default=1.0, metavar="S", help="seconds a lease is held on average (1)")
    which.add_argument("--shared", type=_share, default=0.25, metavar="P", help="share of uses that are shared (0.25)")
    which.add_argument(
        "--faults",
        default="all",
        metavar="WHAT",
        help=f"a profile ({', '.join(PROFILES)}), rates like late=0.01, or both with commas (all)",
    )
    which.add_argument("--io-timeout", type=positive, default=10, metavar="S", help="seconds (10)")
    which.add_argument(
        "--reference", type=int, default=0, metavar="K", help="so many of the hosts follow the reference's rules (0)"
    )
    which.add_argument(
        "--rules",
        choices=("leasehold", "reference"),
        default="leasehold",
        help="reference: all hosts follow the reference's rules, and a run ends where two of them hold one lease",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--jobs", type=positive, default=cores(), metavar="J", help="cores used for several seeds (all)")
    how.add_argument("--state", type=Path, metavar="FILE", help="note finished seeds here, and leave out those noted")
    how.add_argument("--trace", action="store_true", help="show the last events of the run, with a legend")
    how.add_argument("--events", type=positive, default=_SHOWN, metavar="N", help=f"events shown ({_SHOWN})")
    how.add_argument(
        "--mutants",
        nargs="*",
        metavar="NAME",
        help="plant deliberate bugs in the protocols instead, all or these, and see how fast each is found",
    )
    how.add_argument("--shrink", action="store_true", help="look for a smaller run that breaks the same rule")
    add_json(parser)
    parser.set_defaults(do=run)
    return parser


def run(options: Namespace) -> int:
    if options.mutants is not None:
        from leases.sim import hunt  # brings the disk engine, which no simulation needs

        return BROKEN if hunt.report(hunt.named(options.mutants), print_line) else 0
    setup = _setup(options)
    if options.seeds is not None:
        return _run_many(options, setup)
    outcome = simulate(setup)
    if outcome.failure is not None and options.shrink:
        outcome = shrink(outcome, simulate)
    if options.json:
        print_json(_facts_of_run(outcome, options.events if options.trace or outcome.failure else 0))
    else:
        _tell_run(outcome, options)
    return BROKEN if outcome.failure is not None else 0


def _setup(options: Namespace) -> Setup:
    reference = options.hosts if options.rules == "reference" else options.reference
    return Setup(
        seed=options.seed,
        hosts=options.hosts,
        reference=min(reference, options.hosts),
        leases=options.leases,
        hours=options.hours,
        faults=Faults.parse(options.faults),
        io_timeout=options.io_timeout,
        work=Work(clients=options.clients, period_s=options.period, hold_s=options.hold, shared=options.shared),
        stop_at_double=options.rules == "reference",
    )


def _tell_run(outcome: Outcome, options: Namespace) -> None:
    print_facts(
        [
            ("seed", outcome.setup.seed),
            ("simulated", f"{outcome.seconds / 3600:.2f} hours of {_hosts(outcome.setup)}"),
            ("operations", outcome.operations),
            ("grants", outcome.grants),
            ("events", outcome.events),
            ("violations", outcome.failure if outcome.failure is not None else "none"),
        ]
    )
    for rule, times in Counter(double.rule for double in outcome.doubles).items():
        print_line(f"hosts of the reference, among themselves, broke the rule {rule!r} {times} times")
    if outcome.failure is not None and options.shrink:
        print_line(f"with these faults alone, and {_hosts(outcome.setup)}:")
        for (host, kind, number), what in outcome.chosen:
            print_line(f"  h{host} {kind} {number}: {what}")
    if options.trace or outcome.failure is not None:
        print_line("\n" + outcome.trace.text(options.events))


def _hosts(setup: Setup) -> str:
    of_reference = f", {setup.reference} of them of the reference" if setup.reference else ""
    return f"{setup.hosts} hosts{of_reference}"


def _facts_of_run(outcome: Outcome, events: int) -> dict[str, Any]:
    setup = outcome.setup
    return {
        "seed": setup.seed,
        "hosts": setup.hosts,
        "reference": setup.reference,
        "hours": outcome.seconds / 3600,
        "operations": outcome.operations,
        "grants": outcome.grants,
        "events": outcome.events,
        "violation": None if outcome.failure is None else str(outcome.failure),
        "among_references": [str(double) for double in outcome.doubles],
        "faults": [{"host": key[0], "kind": key[1], "number": key[2], "what": what} for key, what in outcome.chosen],
        "trace": list(outcome.trace.lines(events)) if events else [],
    }


def _run_many(options: Namespace, setup: Setup) -> int:
    notices = Notices(quiet=options.json)
    totals = Totals()

    def told(result: Result) -> None:
        totals.add(result)
        if result.rule and not options.json:
            print_line(f"seed {result.seed}: {result.failure}", style="bold red")

    notices.progress(f"simulating {len(options.seeds)} clusters", 0.0)
    results = campaign(setup, options.seeds, jobs=options.jobs, state=options.state, told=told)
    failed = [result for result in results if result.rule]
    if options.json:
        print_json({**asdict(totals), "operations_per_second": totals.rate, "failed": failed})
    else:
        print_facts(
            [
                ("seeds", f"{options.seeds[0]} to {options.seeds[-1]}"),
                ("simulated", f"{totals.hours:.1f} hours of {_hosts(setup)}"),
                ("operations", f"{totals.operations}, {totals.rate:.0f} a second on one core"),
                ("grants", totals.grants),
                ("violations", totals.violations),
                *([("doubles of the reference", totals.reference_doubles)] if setup.reference else []),
            ]
        )
        if failed:
            options.trace = True
            again = simulate(replace(setup, seed=failed[0].seed))
            _tell_run(shrink(again, simulate) if options.shrink else again, options)
    return BROKEN if failed else 0


def _seeds(text: str) -> range:
    first, dash, last = text.partition("-")
    try:
        seeds = range(int(first), int(last if dash else first) + 1)
    except ValueError:
        seeds = range(0)
    if not seeds:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of seeds: write e.g. 1-100")
    return seeds


def _share(text: str) -> float:
    share = seconds(text)
    if share > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share from 0 to 1")
    return share
