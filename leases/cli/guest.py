"""The options of `leasehold run` for a command that is a guest with disks, under a lock manager."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from paxos.errors import InvalidUse


def add_lock_manager(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("for a guest with disks (NAME is its name then)")
    group.add_argument("--lock-manager", metavar="KIND", help="nop, fcntl, paxos, or another one that is installed")
    group.add_argument("--disk", action="append", default=[], metavar="PATH", help="a disk it uses; may be repeated")
    group.add_argument(
        "--lock-dir", metavar="DIR", help="where its locks are: fcntl (else on the disks themselves), paxos"
    )


def check_lock_manager(options: Namespace) -> None:
    """Raises InvalidUse for options that do not go together."""
    if not options.lock_manager:
        if options.disk or options.lock_dir:
            raise InvalidUse(reason="--disk and --lock-dir need --lock-manager")
        return
    if not options.disk:
        raise InvalidUse(reason="--lock-manager needs at least one --disk")
    if options.volume:
        raise InvalidUse(reason="--volume is for a single lease, --lock-manager for disks: choose one")
