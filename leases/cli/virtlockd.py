"""`leasehold virtlockd`: a lock daemon in the place of libvirt's virtlockd, for its unmodified lockd plugin.

Signals: TERM stops it without killing a guest; what is locked stays locked until the next one takes over. USR1 makes
it become its own next version without unlocking anything, and refuses no client meanwhile.
"""

from __future__ import annotations

from argparse import Namespace

from leases.cli.arguments import Parser, seconds
from leases.manager import service


def parser() -> Parser:
    parser = Parser("leasehold virtlockd", description=__doc__)
    parser.add_argument("--socket", metavar="PATH", help="where libvirt connects (else: virtlockd's own place)")
    parser.add_argument("--pid-file", metavar="PATH", help="write the process id there")
    parser.add_argument("--replace", action="store_true", help="take over from a daemon that is running")
    parser.add_argument(
        "-t", "--timeout", type=seconds, default=0.0, metavar="S", help="end when unused for so long (else: never)"
    )
    parser.set_defaults(do=run)
    return parser


def run(options: Namespace) -> int:
    serve = service("virtlockd")
    serve(options.socket, pid_file=options.pid_file, replace=options.replace, idle_timeout=options.timeout)
    return 0
