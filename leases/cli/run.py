"""`leasehold run NAME -- COMMAND…`: a command runs while, and only while, a lease is held.

The order is what makes it safe: the command's process is forked first and waits; the lease is taken; the process is
put under the guard of the lockspace's watchdog and of the kernel; only then it becomes the command. It ends before
the lease is released, whatever happens to this process: the kernel kills it when this process dies, the guardian
when it stops renewing.
"""

from __future__ import annotations

import errno
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING

from leases.cli import exit_codes
from leases.cli.arguments import Parser, add_volume, positive, seconds
from leases.cli.child import CannotExecute, Child, missing
from leases.cli.failure import one_line
from leases.cli.guest import add_lock_manager, check_lock_manager
from leases.cli.notices import Notices, held_line, say
from leases.cli.signals import Signals
from paxos.errors import Aborted, HeldElsewhere, LeaseholdError, ReleaseOwner

if TYPE_CHECKING:
    from leases.lease import Lease

WATCHDOGS = ("guardian", "auto", "wdmd", "device", "systemd", "none")


class RunParser(Parser):
    """Everything after the first `--` is the command's."""

    def parse_args(self, words: Sequence[str]) -> Namespace:  # type: ignore[override]
        place = list(words).index("--") if "--" in words else len(words)
        ours, command = list(words[:place]), list(words[place + 1 :])
        if not command and not {"-h", "--help"} & set(ours):
            self.error("which command? write it after --")
        options = super().parse_args(ours)
        options.command = command
        return options


def parser() -> Parser:
    parser = RunParser(
        "leasehold run",
        usage="leasehold run [options] NAME -- COMMAND…",
        description="Takes the lease NAME, runs COMMAND while it is held, and ends with COMMAND's exit code. "
        "Without --volume the lease lies on a volume of this user's own, made on first use.",
        epilog="Exit codes: COMMAND's own (128 + n if signal n ended it), 75 if somebody else holds the lease, "
        "76 if the lease was lost and COMMAND was stopped, 126 or 127 if COMMAND can't be executed or found.",
    )
    parser.add_argument("name", metavar="NAME", help="the lease")
    add_volume(parser, required=False)
    parser.add_argument("--host-id", type=positive, metavar="N", help="join with this host id (else: any free one)")
    parser.add_argument("--io-timeout", type=positive, metavar="S", help="seconds one disk I/O may take")
    parser.add_argument("--wait", type=seconds, default=0.0, metavar="S", help="wait so long for the lease (seconds)")
    parser.add_argument("--shared", action="store_true", help="hold it together with others that hold it shared")
    parser.add_argument(
        "--watchdog", choices=WATCHDOGS, default="guardian", help="what stops COMMAND if the lease can't be renewed"
    )
    add_lock_manager(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="do not say what is waited for")
    parser.set_defaults(do=run)
    return parser


def run(options: Namespace) -> int:
    """Returns the exit code. LeaseholdError as long as the command did not start."""
    check_lock_manager(options)
    number = missing(options.command[0])
    if number is not None:
        return _not_executed(CannotExecute(options.command[0], number))
    child = Child(options.command)
    try:
        with Signals() as signals:
            return _run(options, child, signals)
    except CannotExecute as error:
        return _not_executed(error)
    finally:
        if child.waiting:
            child.call_off()


def _run(options: Namespace, child: Child, signals: Signals) -> int:
    # only now: the process must not have threads before the fork, and what is imported here may start some
    if options.lock_manager:
        from leases.cli.guest_run import run_guest

        return run_guest(options, child, signals)
    from leases.cli.supervision import Supervision
    from leases.embedded import embedded_volume, ensure_lease
    from leases.keeper.watchdog import open_watchdog
    from leases.volume import Volume

    notices = Notices(quiet=options.quiet)
    volume = Volume(options.volume) if options.volume else embedded_volume(notices.progress)
    watchdog = open_watchdog(options.watchdog, on_feeder_death="kill")
    try:
        with volume.join(
            options.host_id,
            io_timeout=options.io_timeout,
            watchdog=watchdog,
            progress=notices.progress,
            abort=signals.abort,
        ) as lockspace:
            if not options.volume:
                ensure_lease(lockspace, options.name)
            try:
                lease = lockspace.acquire(
                    options.name,
                    shared=options.shared,
                    wait=options.wait,
                    abort=signals.abort,
                    on_refusal=lambda refusal: notices.refused(options.name, refusal, options.wait),
                )
            except HeldElsewhere as held:
                notices.over()
                say(held_line(options.name, held, lockspace))
                return exit_codes.HELD
            supervision = Supervision(child, lease, signals, say)
            try:
                lease.add_holder(child.pid, group=True)
                notices.over()
                notices.held(lease, watchdog)
                supervision.run(environment(lease))
            finally:
                released = _release(lease)
            return child.exit_code() if released and not supervision.lost else exit_codes.LOST
    except Aborted:
        if signals.aborted_by is None:
            raise
        return exit_codes.SIGNALLED + signals.aborted_by
    finally:
        notices.over()
        watchdog.close()


def _release(lease: Lease) -> bool:
    """Give it back. Whether it was ours to the end; other failures are the disk's, and the next renewals show them."""
    try:
        lease.release()
    except ReleaseOwner as lost:
        say(one_line(lost))
        return False
    except LeaseholdError as failure:
        say(one_line(failure))
    return True


def environment(lease: Lease) -> dict[str, str]:
    """What the command is told about its lease."""
    token = lease.token
    return {
        "LEASEHOLD_TOKEN": str(token),
        "LEASEHOLD_LOCKSPACE": token.lockspace,
        "LEASEHOLD_RESOURCE": token.resource,
        "LEASEHOLD_LVER": str(token.lver),
        "LEASEHOLD_HOST_ID": str(token.host_id),
        "LEASEHOLD_GENERATION": str(token.generation),
    }


def _not_executed(error: CannotExecute) -> int:
    say(str(error))
    return exit_codes.NOT_FOUND if error.errno == errno.ENOENT else exit_codes.NOT_EXECUTABLE
