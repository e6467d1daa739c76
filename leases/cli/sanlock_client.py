"""leasehold sanlock client: asks a daemon, the reference's or ours, and prints what the reference's command prints."""

from __future__ import annotations

from collections.abc import Callable

from leases.cli import sanlock_leases
from leases.cli.sanlock import VERSION, Arguments
from leases.cli.sanlock_ask import ask, done, geometry, guarded, lockspace, resources, result_of
from leases.cli.sanlock_status import print_status
from leases.daemon import exchange, statestring
from leases.daemon.exchange import Record
from leases.daemon.numbers import ConfigCommand, HostState, LockspaceFlag, StatusDepth
from leases.daemon.wire import HostEvent, Lockspace
from paxos.errors import LeaseholdError
from paxos.geometry import ALIGN_FLAGS, SECTOR_FLAGS

_HOST_STATES = {state: state.name[:4] for state in HostState}


# -------------------------------------------------------------------------------------------------- the daemon


def version(_arguments: Arguments) -> int:
    print(f"client version {VERSION} (0x03080500)")
    try:
        found = ask(exchange.version())
    except LeaseholdError as error:
        return error.code
    number = found.major << 24 | found.minor << 16 | found.patch << 8
    print(f"daemon version {found} (0x{number:08x})")
    print("client socket protocol 0.1")
    print(f"daemon socket protocol {found.protocol >> 16}.{found.protocol & 0xFFFF}")
    return 0


def status(arguments: Arguments) -> int:
    def action() -> int:
        print_status(ask(exchange.status()), arguments.text("o") or "", arguments.debug)
        return 0

    return guarded(action)


def log_dump(_arguments: Arguments) -> int:
    def action() -> int:
        text = ask(exchange.log())
        print(text)
        return len(text)

    return guarded(action)


def shutdown(arguments: Arguments) -> int:
    force, wait = arguments.number("f"), arguments.number("w")
    print(f"shutdown force {force} wait {wait}")
    return done("shutdown", result_of(lambda: exchange.shutdown(bool(force), bool(wait))))


def gets(arguments: Arguments) -> int:
    def action() -> int:
        for one in ask(exchange.lockspaces()):
            flags = " ".join(flag.name or "" for flag in LockspaceFlag if flag & one.flags)
            print(f"s {statestring.format_lockspace(one).decode(errors='surrogateescape')} {flags}")
            if arguments.flag("h"):
                _print_hosts(one)
        return 0

    return guarded(action)


def _print_hosts(one: Lockspace) -> None:
    try:
        hosts = ask(exchange.hosts(one.name))
    except LeaseholdError as error:
        print("hosts not ready" if error.code == -11 else f"hosts error {error.code}")
        return
    for host in hosts:
        state = _HOST_STATES[host.state] if host.state is not None else ""
        print(f"h {host.host_id} gen {host.generation} timestamp {host.timestamp} {state}")


def host_status(arguments: Arguments) -> int:
    def action() -> int:
        if arguments.text("s"):
            _print_host_records(lockspace(arguments).name, arguments.debug)
            return 0
        for one in ask(exchange.status(StatusDepth.LOCKSPACES)).lockspaces:
            print(f"lockspace {one.state.name.decode(errors='surrogateescape')}")
            _print_host_records(one.state.name, arguments.debug)
        return 0

    return guarded(action)


def _print_host_records(name: bytes, debug: bool) -> None:
    for record in ask(exchange.host_status(name)):
        print(f"{record.state.data32} timestamp {record.state.data64}")
        print_values(record, debug)


def print_values(record: Record, debug: bool) -> None:
    if debug:
        for key, value in record.values.items():
            print(f"    {key}={value}")


def renewal(arguments: Arguments) -> int:
    def action() -> int:
        for record in ask(exchange.renewals(lockspace(arguments).name)):
            print(" ".join(f"{key}={value}" for key, value in record.values.items()))
        return 0

    return guarded(action)


# ----------------------------------------------------------------------------------------------- lockspaces


def add_lockspace(arguments: Arguments) -> int:
    io_timeout = arguments.number("o")
    name = "add_lockspace_timeout" if io_timeout else "add_lockspace"
    print(f"{name} {io_timeout}" if io_timeout else name)
    return done(name, result_of(lambda: exchange.add_lockspace(lockspace(arguments), io_timeout)))


def inq_lockspace(arguments: Arguments) -> int:
    def action() -> int:
        found = ask(exchange.inquire_lockspace(lockspace(arguments)))
        return {True: 0, False: -2, None: -115}[found]

    print("inq_lockspace")
    return done("inq_lockspace", guarded(action))


def rem_lockspace(arguments: Arguments) -> int:
    print("rem_lockspace")
    return done("rem_lockspace", result_of(lambda: exchange.remove_lockspace(lockspace(arguments))))


def set_config(arguments: Arguments) -> int:
    name = lockspace(arguments).name
    what = 0
    if arguments.text("u") is not None:
        what = ConfigCommand.USED if arguments.flag("u") else ConfigCommand.UNUSED
    elif arguments.text("O") is not None:
        what = ConfigCommand.USED_BY_ORPHANS if arguments.flag("O") else ConfigCommand.UNUSED_BY_ORPHANS
    print(f"set_config {name.decode(errors='surrogateescape')} {int(what)}")
    if not what:
        return done("set_config", -22)
    return done("set_config", result_of(lambda: exchange.configure(name, ConfigCommand(what))))


def set_event(arguments: Arguments) -> int:
    event = HostEvent(*(arguments.number(letter) for letter in "iged"))
    print(f"set_event {event.host_id} {event.generation} event {event.event:#x} data {event.data:#x}")
    name = lockspace(arguments).name
    return done("set_event", result_of(lambda: exchange.set_event(name, event, arguments.number("F"))))


def align(arguments: Arguments) -> int:
    print("align")
    return done("align", guarded(lambda: ask(exchange.align(lockspace(arguments).disk.path))))


def init(arguments: Arguments) -> int:
    def action() -> int:
        sizes, number = geometry(arguments), arguments.number("n")
        if arguments.text("s"):
            ask(exchange.write_lockspace(lockspace(arguments), sizes, arguments.number("o", 10)))
        elif arguments.text("r"):
            clear = arguments.flag("z")
            ask(exchange.write_resource(resources(arguments)[0], sizes, number, number, clear))
        else:
            return -22
        return 0

    print("init")
    return done("init", guarded(action))


def read(arguments: Arguments) -> int:
    def action() -> int:
        if arguments.text("s"):
            _read_lockspace(arguments)
        elif arguments.text("r"):
            _read_resource(arguments)
        else:
            return -22
        return 0

    result = guarded(action)
    if result:
        print(f"read error {result}")
    return result


def _read_lockspace(arguments: Arguments) -> None:
    found = ask(exchange.read_lockspace(lockspace(arguments)))
    print(f"s {statestring.format_lockspace(found.lockspace).decode(errors='surrogateescape')}")
    if arguments.debug:
        print(f"io_timeout {found.io_timeout}")
        _print_sizes(found.lockspace.flags)


def _read_resource(arguments: Arguments) -> None:
    wanted = resources(arguments)[0]
    if not arguments.flag("h"):
        found = ask(exchange.read_resource(wanted))
        print(f"r {statestring.format_resource(found).decode(errors='surrogateescape')}")
        if arguments.debug:
            _print_sizes(found.flags)
        return
    owners = ask(exchange.resource_owners(wanted))
    print(f"r {statestring.format_resource(owners.resource).decode(errors='surrogateescape')}")
    if arguments.debug:
        _print_sizes(owners.resource.flags)
    for host in owners.hosts:
        stamp = f" timestamp {host.timestamp}" if host.timestamp else ""
        print(f"h {host.host_id} gen {host.generation}{stamp}")


def _print_sizes(flags: int) -> None:
    sector = next((size for size, bit in SECTOR_FLAGS.items() if flags & bit), 0)
    print(f"sector_size {sector}")
    print(f"align_size {next((size for size, bit in ALIGN_FLAGS.items() if flags & bit), 0)}")


ACTIONS: dict[str, Callable[[Arguments], int]] = {
    "version": version,
    "status": status,
    "log_dump": log_dump,
    "shutdown": shutdown,
    "gets": gets,
    "host_status": host_status,
    "renewal": renewal,
    "add_lockspace": add_lockspace,
    "inq_lockspace": inq_lockspace,
    "rem_lockspace": rem_lockspace,
    "set_config": set_config,
    "set_event": set_event,
    "align": align,
    "init": init,
    "read": read,
    "command": sanlock_leases.command,
    "acquire": sanlock_leases.acquire,
    "convert": sanlock_leases.convert,
    "release": sanlock_leases.release,
    "inquire": sanlock_leases.inquire,
    "request": sanlock_leases.request,
    "examine": sanlock_leases.examine,
    "format": sanlock_leases.format_index,
    "create": sanlock_leases.create,
    "delete": sanlock_leases.delete,
    "lookup": sanlock_leases.lookup,
    "update": sanlock_leases.update,
    "rebuild": sanlock_leases.rebuild,
}
