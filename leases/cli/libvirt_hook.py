"""`leasehold libvirt-hook`: what libvirt runs as its qemu hook, so that it needs no lock manager of its own.

As /etc/libvirt/hooks/qemu, executable, and then restart libvirtd:

    #!/bin/sh
    exec leasehold libvirt-hook "$@"
"""

from __future__ import annotations

import sys
from argparse import Namespace

from leases.cli.arguments import Parser
from leases.manager import service


def parser() -> Parser:
    parser = Parser("leasehold libvirt-hook", description="Takes, guards and gives back the locks of a guest's disks.")
    parser.add_argument("--config", metavar="FILE", help="which lock manager, and its settings (TOML)")
    parser.add_argument("guest", metavar="GUEST", help="its name; its XML is read from standard input")
    parser.add_argument("operation", metavar="OPERATION", help="prepare, start, started, stopped, release, migrate, …")
    parser.add_argument("suboperation", metavar="SUBOPERATION", nargs="?", default="-", help="begin or end")
    parser.add_argument("extra", metavar="EXTRA", nargs="?", default="-", help="not used")
    parser.set_defaults(do=run)
    return parser


def run(options: Namespace) -> int:
    settings = {} if options.config is None else {"config": options.config}
    service("libvirt-hook")(options.guest, options.operation, options.suboperation, sys.stdin, **settings)
    return 0
