"""`leasehold host list`: the hosts of a volume's lockspace."""

from __future__ import annotations

from argparse import Namespace

from rich.text import Text

from leases.cli.arguments import Parser, add_json, add_volume, seconds
from leases.cli.notices import Notices
from leases.cli.output import print_json, print_line, print_table
from leases.cli.volumes import chosen_volume
from leases.sightings import HostInfo
from paxos.liveness import HostState

_STYLES = {
    HostState.FREE: "dim",
    HostState.LIVE: "green",
    HostState.FAIL: "yellow",
    HostState.DEAD: "bold red",
    HostState.UNKNOWN: "",
}


def parser() -> Parser:
    parser = Parser("leasehold host", description="The hosts of a volume. Without --volume: of this user's own.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    listing = commands.add_parser(
        "list",
        help="list the hosts",
        description="List every host id that was ever taken. The disk alone does not say who is alive: watch it for "
        "longer than the hosts' renewal interval (2 io-timeouts) to see who renews.",
    )
    add_volume(listing, required=False)
    listing.add_argument(
        "--watch", type=seconds, default=0.0, metavar="S", help="watch the hosts for so long (seconds)"
    )
    add_json(listing)
    listing.set_defaults(do=list_all)
    return parser


def list_all(options: Namespace) -> None:
    notices = Notices(quiet=options.json)
    volume = chosen_volume(options)
    if options.watch:
        notices.progress("watching the hosts renew", options.watch)
    try:
        hosts = volume.hosts(options.watch)
    finally:
        notices.over()
    if options.json:
        print_json(hosts)
        return
    print_table(
        ["host id ", "name", "generation ", "state", "quiet for ", "io-timeout "],
        [
            (
                host.host_id,
                host.name,
                host.generation,
                Text(_state(host), style=_STYLES[host.state]),
                "" if host.quiet_for is None or not host.timestamp else f"{host.quiet_for:.0f} s",
                f"{host.io_timeout:g} s",
            )
            for host in hosts
        ],
        empty="no host has ever joined",
    )
    if not options.watch and any(host.state is HostState.UNKNOWN for host in hosts):
        slowest = max(host.io_timeout for host in hosts)
        print_line(f"who is alive shows only when they are watched: --watch {2 * slowest + 2:.0f}", "dim")


def _state(host: HostInfo) -> str:
    if host.state is HostState.FREE:
        return "left"
    return host.state.name.lower()
