"""`leasehold explain NAME`: who holds a lease, when it could be taken and why not before, and what to do."""

from __future__ import annotations

from argparse import Namespace

from rich.text import Text

from leases.cli.arguments import Parser, add_json, add_volume, seconds
from leases.cli.notices import Notices
from leases.cli.output import as_json, print_facts, print_json, print_line
from leases.cli.volumes import chosen_volume
from leases.sightings import Explanation
from paxos.timing import DEFAULT_FIRE_TIMEOUT, Timing


def parser() -> Parser:
    parser = Parser(
        "leasehold explain",
        description="Say who holds a lease, when that host last renewed, when the lease could be taken if that host "
        "is dead and why not before, and what to do. Watches the holder until it renews.",
    )
    parser.add_argument("name", metavar="NAME", help="the lease")
    add_volume(parser, required=False)
    parser.add_argument(
        "--watch", type=seconds, metavar="S", help="watch the holder for so long (else: one of its renewal intervals)"
    )
    add_json(parser)
    parser.set_defaults(do=explain)
    return parser


def explain(options: Namespace) -> None:
    notices = Notices(quiet=options.json)
    volume = chosen_volume(options)
    notices.progress("watching whether the holder renews", options.watch or 0.0)
    try:
        found = volume.explain(options.name, options.watch)
    finally:
        notices.over()
    if options.json:
        print_json({**as_json(found), "why_not_before": why_not_before(found), "advice": advice(found)})
        return
    print_line(found.summary, "bold")
    facts: list[tuple[str, object]] = [("version", found.lease.lver)]
    for host in found.holders:
        facts.append(("holder", f"{host.name} (host id {host.host_id}, generation {host.generation})"))
    if found.renewed_ago is not None:
        facts.append(("last renewed", f"{found.renewed_ago:.1f} s ago"))
    if found.free_in:
        facts.append(("can be taken", f"in {found.free_in:.0f} s, if its holder is dead"))
    if why := why_not_before(found):
        facts.append(("why not before", why))
    facts.append(("what to do", Text(advice(found), style="green")))
    print_facts(facts)


def why_not_before(found: Explanation) -> str:
    """Empty if it can be taken now."""
    if found.free_in == 0.0 or not found.holders:
        return ""
    io_timeout = max(host.io_timeout for host in found.holders)
    dead = Timing(io_timeout, DEFAULT_FIRE_TIMEOUT).host_dead
    return (
        f"only {dead:.0f} s after its last renewal (8 x its io-timeout of {io_timeout:g} s + {DEFAULT_FIRE_TIMEOUT} s) "
        "its watchdog has surely stopped it"
    )


def advice(found: Explanation) -> str:
    name = found.lease.name
    if found.lease.problem:
        return "look what is damaged: leasehold volume check"
    if found.free_in is None:
        return f"end its holder there, or wait for it: leasehold run --wait SECONDS {name} -- COMMAND"
    if found.free_in > 0:
        return f"let it be waited for: leasehold run --wait {found.free_in + 30:.0f} {name} -- COMMAND"
    return f"take it: leasehold run {name} -- COMMAND"
