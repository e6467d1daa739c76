"""`leasehold volume create|show|check`: volumes as a whole."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from rich.text import Text

from leases.cli import exit_codes
from leases.cli.arguments import Parser, add_json, positive, size
from leases.cli.notices import Notices
from leases.cli.output import print_facts, print_json, print_line, print_table
from leases.findings import Severity
from leases.volume import Volume
from paxos.errors import BadRecord, SizesInvalid
from paxos.geometry import DEFAULT_ALIGN, MIB

_STYLES = {Severity.NOTE: "dim", Severity.WARNING: "yellow", Severity.ERROR: "bold red"}


def parser() -> Parser:
    parser = Parser("leasehold volume", description="Lease volumes: files or block devices that all hosts share.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    creating = commands.add_parser("create", help="lay out a new volume", description="Lay out a new volume.")
    creating.add_argument("path", metavar="PATH", help="a block device, or a file (made if it does not exist)")
    creating.add_argument("--lockspace", metavar="LS", required=True, help="the lockspace's name")
    creating.add_argument("--leases", type=positive, metavar="N", help="room for so many leases")
    creating.add_argument("--hosts", type=positive, default=0, metavar="N", help="host ids that may use each lease")
    creating.add_argument("--io-timeout", type=positive, default=10, metavar="S", help="seconds for one I/O (10)")
    creating.add_argument("--sector-size", type=size, metavar="BYTES", help="512 or 4096 (as the disk has it)")
    creating.add_argument("--align-size", type=size, metavar="BYTES", help="1M, 2M, 4M or 8M (512: 1M, 4096: 8M)")
    creating.add_argument("--force", action="store_true", help="write over what is there")
    add_json(creating)
    creating.set_defaults(do=create)

    showing = commands.add_parser("show", help="say what a volume is", description="Say what a volume is.")
    showing.add_argument("path", metavar="PATH")
    add_json(showing)
    showing.set_defaults(do=show)

    checking = commands.add_parser(
        "check",
        help="look a volume over",
        description="Look a whole volume over, without changing it. Exit code 65 if it finds errors.",
    )
    checking.add_argument("path", metavar="PATH")
    add_json(checking)
    checking.set_defaults(do=check)
    return parser


def create(options: Namespace) -> None:
    sector_size, align_size = _sizes(options.sector_size, options.align_size)
    notices = Notices(quiet=options.json)
    try:
        volume = Volume.create(
            options.path,
            options.lockspace,
            leases=options.leases,
            hosts=options.hosts,
            io_timeout=options.io_timeout,
            sector_size=sector_size,
            align_size=align_size,
            force=options.force,
            progress=notices.progress,
        )
    finally:
        notices.over()
    facts = _facts(volume)
    if options.json:
        print_json(facts)
        return
    print_line(f"{options.path} is now the lockspace {facts['lockspace']}, with room for {facts['max_leases']} leases")
    print_line(f"next: leasehold lease create --volume {options.path} NAME", "dim")


def show(options: Namespace) -> None:
    facts = _facts(Volume(options.path))
    if options.json:
        print_json(facts)
        return
    leases = "no index" if facts["leases"] is None else f"{facts['leases']} of {facts['max_leases']}"
    print_facts(
        [
            ("volume", facts["path"]),
            ("lockspace", facts["lockspace"]),
            ("sector size", f"{facts['sector_size']} bytes"),
            ("area size", f"{facts['align_size'] // MIB} MiB"),
            ("leases", leases),
            ("host ids", f"{facts['joined_hosts']} of {facts['max_hosts']} in use"),
        ]
    )


def check(options: Namespace) -> int:
    findings = Volume(options.path).check()
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    if options.json:
        print_json({"sound": not errors, "findings": [_finding(finding) for finding in findings]})
    else:
        print_table(
            ["severity", "offset ", "finding", "what to do"],
            [
                (
                    Text(finding.severity.value, style=_STYLES[finding.severity]),
                    finding.place.offset,
                    finding.what,
                    finding.advice,
                )
                for finding in findings
            ],
            empty="nothing is wrong",
        )
    return exit_codes.BAD_DATA if errors else 0


def _sizes(sector_size: int | None, align_size: int | None) -> tuple[int | None, int | None]:
    """Where one is given, the usual other one. Raises SizesInvalid for what no volume can have."""
    if sector_size is not None and align_size is None:
        if sector_size not in DEFAULT_ALIGN:
            raise SizesInvalid(sector_size=sector_size, align_size="(not given)")
        return sector_size, DEFAULT_ALIGN[sector_size]
    if align_size is not None and sector_size is None:
        return (512 if align_size == MIB else 4096), align_size
    return sector_size, align_size


def _facts(volume: Volume) -> dict[str, Any]:
    lockspace, geometry = volume.probe()
    index = leases = None
    try:
        index = volume.index
        leases = len(volume.leases())
    except BadRecord:
        pass  # `leasehold volume check` says what is wrong with it
    return {
        "path": volume.path,
        "lockspace": lockspace,
        "offset": 0,
        "sector_size": geometry.sector_size,
        "align_size": geometry.align_size,
        "max_hosts": geometry.max_hosts,
        "joined_hosts": sum(host.timestamp != 0 for host in volume.hosts()),
        "index_offset": index and index.place.offset,
        "leases": leases,
        "max_leases": index and index.max_resources,
    }


def _finding(finding: Any) -> dict[str, Any]:
    return {
        "severity": finding.severity.value,
        "offset": finding.place.offset,
        "what": finding.what,
        "advice": finding.advice,
    }
