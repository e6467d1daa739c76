"""`leasehold lease create|list|show|delete`: the leases of a volume, by their names in its index."""

from __future__ import annotations

from argparse import Namespace

from rich.text import Text

from leases.cli.arguments import Parser, add_json, add_volume, positive
from leases.cli.notices import Notices
from leases.cli.output import print_facts, print_json, print_line, print_table
from leases.cli.volumes import chosen_volume
from leases.sightings import LeaseInfo, OwnerInfo


def parser() -> Parser:
    parser = Parser("leasehold lease", description="The leases of a volume. Without --volume: of this user's own.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    creating = commands.add_parser(
        "create",
        help="make a lease",
        description="Make a lease. Joins the lockspace for that, so it takes at least 2 io-timeouts.",
    )
    add_volume(creating, required=False)
    creating.add_argument("name", metavar="NAME")
    creating.add_argument("--hosts", type=positive, default=0, metavar="N", help="host ids that may use it")
    add_json(creating)
    creating.set_defaults(do=create)

    listing = commands.add_parser("list", help="list all leases", description="List all leases and who holds them.")
    add_volume(listing, required=False)
    add_json(listing)
    listing.set_defaults(do=list_all)

    showing = commands.add_parser("show", help="show one lease", description="Show one lease, as it is on the disk.")
    add_volume(showing, required=False)
    showing.add_argument("name", metavar="NAME")
    add_json(showing)
    showing.set_defaults(do=show)

    deleting = commands.add_parser(
        "delete",
        help="remove a lease that nobody holds",
        description="Remove a lease that nobody holds. Joins the lockspace for that: at least 2 io-timeouts.",
    )
    add_volume(deleting, required=False)
    deleting.add_argument("name", metavar="NAME")
    add_json(deleting)
    deleting.set_defaults(do=delete)
    return parser


def create(options: Namespace) -> None:
    notices = Notices(quiet=options.json)
    try:
        lease = chosen_volume(options).create_lease(options.name, num_hosts=options.hosts, progress=notices.progress)
    finally:
        notices.over()
    if options.json:
        print_json(lease)
    else:
        print_line(f"made the lease {lease.name} at offset {lease.offset}")


def list_all(options: Namespace) -> None:
    leases = chosen_volume(options).leases()
    if options.json:
        print_json(leases)
        return
    print_table(
        ["lease", "offset ", "version ", "state", "held by"],
        [(lease.name, lease.offset, lease.lver, _state(lease), _holders(lease)) for lease in leases],
        empty="no leases",
    )


def show(options: Namespace) -> None:
    lease = chosen_volume(options).lease(options.name)
    if options.json:
        print_json(lease)
        return
    facts: list[tuple[str, object]] = [
        ("lease", lease.name),
        ("offset", lease.offset),
        ("version", lease.lver),
        ("state", _state(lease)),
        ("hosts", f"laid out for {lease.num_hosts}"),
    ]
    facts += [("held by", _owner(owner)) for owner in lease.owners]
    facts += [("problem", Text(lease.problem, style="bold red"))] if lease.problem else []
    print_facts(facts)


def delete(options: Namespace) -> None:
    notices = Notices(quiet=options.json)
    try:
        chosen_volume(options).delete_lease(options.name, progress=notices.progress)
    finally:
        notices.over()
    if options.json:
        print_json({"deleted": options.name})
    else:
        print_line(f"deleted the lease {options.name}")


def _state(lease: LeaseInfo) -> Text:
    if lease.problem:
        return Text("damaged", style="bold red")
    if lease.mode == "free":
        return Text("free", style="green")
    if all(owner.ended for owner in lease.owners):
        return Text("left", style="green")
    return Text(lease.mode, style="yellow")


def _holders(lease: LeaseInfo) -> str:
    return lease.problem or ", ".join(map(_owner, lease.owners))


def _owner(owner: OwnerInfo) -> str:
    name = owner.host_name or "unknown"
    ended = ", which has left" if owner.ended else ""
    return f"{name} (host id {owner.host_id}, generation {owner.generation}){ended}"
