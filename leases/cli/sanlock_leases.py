"""The actions of `leasehold sanlock client` about leases, and about the index that names them."""

from __future__ import annotations

import os
import signal
import sys

from leases.cli.sanlock import Arguments
from leases.cli.sanlock_ask import ask, done, entry, geometry, guarded, lockspace, print_entry, resources, result_of
from leases.connection import Connection, socket_path
from leases.daemon import exchange
from leases.daemon.numbers import AcquireFlag, IndexFlag, RequestMode, ResourceFlag
from leases.daemon.wire import IndexEntry, Resource
from paxos.errors import LeaseholdError

# ---------------------------------------------------------------------------------------------------- leases


def _acquire_flags(arguments: Arguments) -> AcquireFlag:
    return AcquireFlag.ORPHAN if arguments.flag("O") else AcquireFlag(0)


def _wanted(arguments: Arguments) -> list[Resource]:
    found = resources(arguments)
    number = arguments.number("n")
    flags = int(ResourceFlag.PERSISTENT) if arguments.flag("P") else 0
    flags |= int(ResourceFlag.NUM_HOSTS) if number else 0
    return [Resource(one.lockspace, one.name, one.disks, one.flags | flags, one.lver, number) for one in found]


def command(arguments: Arguments) -> int:
    """Acquire, then become the command, which goes on holding the leases until it ends."""
    connection = Connection(socket_path())
    os.set_inheritable(connection.fileno(), True)
    try:
        connection.run(exchange.register())
        connection.run(exchange.acquire(_wanted(arguments), flags=_acquire_flags(arguments)))
    except LeaseholdError as error:
        print(f"register\nregister done {connection.fileno()}")
        print(f"acquire fd {connection.fileno()}\nacquire done {error.code}")
        return error.code
    if not arguments.rest:
        signal.pause()
    sys.stdout.flush()
    try:
        os.execv(arguments.rest[0], arguments.rest)
    except OSError as error:
        print(f"{arguments.rest[0]}: {error.strerror}", file=sys.stderr)
        return 1


def acquire(arguments: Arguments) -> int:
    pid = arguments.number("p")
    print(f"acquire pid {pid}")
    flags = _acquire_flags(arguments)
    return done("acquire", result_of(lambda: exchange.acquire(_wanted(arguments), pid, flags)))


def convert(arguments: Arguments) -> int:
    pid = arguments.number("p")
    print(f"convert pid {pid}")
    return done("convert", result_of(lambda: exchange.convert(resources(arguments)[0], pid)))


def release(arguments: Arguments) -> int:
    pid = arguments.number("p")

    def action() -> int:
        if arguments.flag("O"):
            named = resources(arguments)
            which = named[0] if named else Resource(lockspace(arguments).name)
            return ask(exchange.release_orphans(which, pid))
        if arguments.flag("a"):
            ask(exchange.release_all(pid))
        else:
            ask(exchange.release(resources(arguments), pid))
        return 0

    print(f"release pid {pid}")
    return done("release", guarded(action))


def inquire(arguments: Arguments) -> int:
    pid = arguments.number("p")
    print(f"inquire pid {pid}")
    state = b""
    result, count = 0, 0
    try:
        state = ask(exchange.inquire_state(pid))
        count = len(exchange.parse_held(state)) if state else 0
    except LeaseholdError as error:
        result = error.code
    print(f"inquire done {result} res_count {count}")
    if result:
        return result
    text = state.decode(errors="surrogateescape") if state else "(null)"
    print(f'"{text}"')
    if arguments.debug and state:
        print(f'\nstate_to_args done 0 res_count {count}\n"{text}"')
        print(f'\nargs_to_state done 0\n"{text}"')
    return 0


def request(arguments: Arguments) -> int:
    def action() -> int:
        wanted = resources(arguments)[0]
        mode = RequestMode(arguments.number("f"))
        ask(exchange.request_resource(wanted, mode, next_lver=not wanted.flags & ResourceFlag.LVER))
        return 0

    print("request")
    return done("request", guarded(action))


def examine(arguments: Arguments) -> int:
    print("examine")
    if arguments.text("r"):
        return done("examine", result_of(lambda: exchange.examine_resource(resources(arguments)[0])))
    if arguments.text("s"):
        return done("examine", result_of(lambda: exchange.examine_lockspace(lockspace(arguments))))
    return done("examine", -22)


# --------------------------------------------------------------------------------------------------- the index


def _index(arguments: Arguments) -> bytes:
    return os.fsencode(arguments.text("x") or "")


def format_index(arguments: Arguments) -> int:
    def action() -> int:
        ask(exchange.format_index(_index(arguments), geometry(arguments)))
        return 0

    return done("format", guarded(action))


def create(arguments: Arguments) -> int:
    number = arguments.number("n")
    found = IndexEntry()

    def action() -> int:
        nonlocal found
        found = ask(exchange.create_resource(_index(arguments), entry(arguments), number, number))
        return 0

    result = done("create_resource", guarded(action))
    if not result:
        print(f"offset {found.offset}")
    return result


def delete(arguments: Arguments) -> int:
    asked = result_of(lambda: exchange.delete_resource(_index(arguments), entry(arguments)))
    return done("delete_resource", asked)


def lookup(arguments: Arguments) -> int:
    found = IndexEntry()

    def action() -> int:
        nonlocal found
        found = ask(exchange.lookup(_index(arguments), entry(arguments)))
        return 0

    result = done("lookup", guarded(action))
    if not result:
        print_entry(found)
    return result


def update(arguments: Arguments) -> int:
    flags = IndexFlag.REMOVE if arguments.flag("z") else IndexFlag.ADD
    asked = result_of(lambda: exchange.update_index(_index(arguments), entry(arguments), flags))
    return done("update", asked)


def rebuild(arguments: Arguments) -> int:
    return done("rebuild", result_of(lambda: exchange.rebuild_index(_index(arguments))))
