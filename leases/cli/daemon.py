"""leasehold daemon: the host's lease keeper, in the foreground.

It listens within a fraction of a second, so this module and what it imports are few.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from leases.cli import exit_codes
from leases.cli.arguments import Parser
from leases.daemon.settings import CONFIG_FILE, BadSetting, Settings, read_file

_KINDS = ("auto", "wdmd", "device", "systemd", "guardian", "none")


def parser() -> Parser:
    made = Parser("leasehold daemon", description="Keep leases for the processes of this host.")
    made.add_argument(
        "--run-dir", metavar="DIR", help="where its socket is (default: $SANLOCK_RUN_DIR or /run/sanlock)"
    )
    made.add_argument("--config", metavar="FILE", default=CONFIG_FILE, help=f"default: {CONFIG_FILE}")
    made.add_argument("--host-name", metavar="NAME", help="how this host signs its host leases (default: a unique one)")
    made.add_argument("--watchdog", choices=_KINDS, help="what stops this host's lease users if renewals stop")
    made.add_argument("--fire-timeout", metavar="SECONDS", type=int, help="the watchdog's, the same on all hosts")
    made.add_argument("--io-timeout", metavar="SECONDS", type=int, help="for lockspaces added without one")
    made.add_argument("--kill-grace", metavar="SECONDS", type=int, help="from a failure's recovery on until SIGKILL")
    made.add_argument("--user", metavar="NAME", help="owner of the socket")
    made.add_argument("--group", metavar="NAME", help="group that may use the socket")
    made.add_argument("--admin-group", metavar="NAME", action="append", help="further groups that may do everything")
    made.add_argument("--no-adopt", action="store_true", help="forget what an earlier daemon held")
    made.add_argument("-D", "--debug", action="store_true", help="log every command")
    made.set_defaults(do=start)
    return made


def start(options: argparse.Namespace) -> int:
    try:
        settings = _settings(options)
    except (BadSetting, OSError) as error:
        print(f"leasehold: {options.config}: {error}", file=sys.stderr)
        return exit_codes.USAGE
    from leases.daemon.start import run

    return run(settings)


def _settings(options: argparse.Namespace) -> Settings:
    given = {
        "run_dir": options.run_dir,
        "our_host_name": options.host_name,
        "watchdog": options.watchdog,
        "watchdog_fire_timeout": options.fire_timeout,
        "io_timeout": options.io_timeout,
        "kill_grace": options.kill_grace,
        "uname": options.user,
        "gname": options.group,
        "admin_groups": tuple(options.admin_group) if options.admin_group else None,
        "adopt": False if options.no_adopt else None,
        "log_level": 7 if options.debug else None,
    }
    settings = read_file(Settings(), options.config)
    return replace(settings, **{name: value for name, value in given.items() if value is not None})
