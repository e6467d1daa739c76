"""The command `leasehold`: finds the group of commands that was asked for, and turns errors into exit codes.

Each group is a module with `parser()` and is imported only when it is asked for: `leasehold run` is started often,
and must not wait for what draws tables.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from leases.cli import exit_codes
from leases.cli.failure import report

#: group of commands -> what its module in this package does
GROUPS = {
    "run": "run a command while a lease is held",
    "explain": "say who holds a lease, and when it could be taken",
    "lease": "create, list, show and delete the leases of a volume",
    "volume": "create, show and check volumes",
    "host": "list the hosts of a volume",
    "sim": "simulate clusters with faults, and check that no lease is held twice",
    "daemon": "keep the leases of this host's processes, as the sanlock daemon does",
    "sanlock": "the sanlock command, word for word",
    "virtlockd": "be the lock daemon of libvirt's lockd plugin",
    "libvirt-hook": "take the leases of libvirt's guests, as its qemu hook",
}


def usage() -> str:
    width = max(map(len, GROUPS))
    lines = [f"  {name:{width}}  {what}" for name, what in GROUPS.items()]
    return "\n".join(
        [
            "usage: leasehold GROUP …      (leasehold GROUP --help says more)",
            "",
            *lines,
            "",
            'First steps:  leasehold run hello -- echo "I hold the lease"',
            "",
            "Exit codes: 64 usage, 65 bad data on the volume, 69 something needed is unavailable, 74 I/O error,",
            "75 held by somebody else (try again later), 76 lease lost, 77 no permission.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else exit_codes.USAGE
    if words[0] == "--version":
        from importlib.metadata import version  # slow to import, and `leasehold daemon` is waited for

        print(f"leasehold {version('leasehold')}")
        return 0
    if words[0] not in GROUPS:
        print(f"leasehold: there is no command {words[0]!r}: it is one of {', '.join(GROUPS)}", file=sys.stderr)
        return exit_codes.USAGE
    as_json = "--json" in words
    try:
        options = import_module(f"leases.cli.{words[0].replace('-', '_')}").parser().parse_args(words[1:])
        as_json = getattr(options, "json", False)
        return int(options.do(options) or 0)
    except KeyboardInterrupt:
        return exit_codes.SIGNALLED + 2
    except BrokenPipeError:
        sys.stderr.close()  # who read us is gone; say nothing about it
        return exit_codes.SIGNALLED + 13
    except Exception as error:
        return report(error, as_json=as_json)


if __name__ == "__main__":
    sys.exit(main())
