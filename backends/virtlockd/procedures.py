"""What each call does: arguments decoded and checked, then the lockspaces asked (lockmanager.md 7.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID

from backends.virtlockd import failures
from backends.virtlockd.lockspaces import Lockspaces
from backends.virtlockd.rpc import (
    KEEPALIVE,
    PROGRAM,
    VERSION,
    Arguments,
    Keepalive,
    Message,
    Procedure,
    Status,
    Type,
    Undecodable,
)

SHARED = 1
AUTOCREATE = 2


@dataclass(frozen=True, slots=True)
class Registered:
    """Whom a connection speaks for, as it said itself."""

    uuid: UUID
    name: str
    id: int
    pid: int


@dataclass(slots=True)
class Caller:
    """What is remembered of a connection from one call to the next."""

    owner: Registered | None = None
    restricted: bool = False

    def required_owner(self) -> Registered:
        if self.owner is None:
            raise failures.not_registered()
        return self.owner


def answer(message: Message, caller: Caller, spaces: Lockspaces) -> Message | None:
    """The answer to a message; None where none is due."""
    if message.program == KEEPALIVE:
        return _pong(message)
    if message.type != Type.CALL:
        return None
    try:
        _do(message, caller, spaces)
    except failures.Refused as refusal:
        return message.reply(refusal.error)
    return message.reply()


def _pong(message: Message) -> Message | None:
    if (message.version, message.type, message.procedure) != (VERSION, Type.MESSAGE, Keepalive.PING):
        return None
    return Message(KEEPALIVE, VERSION, Keepalive.PONG, Type.MESSAGE, 0, Status.OK)


def _do(message: Message, caller: Caller, spaces: Lockspaces) -> None:
    if (message.program, message.version) != (PROGRAM, VERSION):
        raise failures.unknown_program(message.program, message.version)
    if message.status != Status.OK:
        raise failures.bad_status(message.status)
    if message.procedure not in _PROCEDURES:
        raise failures.unknown_procedure(message.procedure)
    try:
        _PROCEDURES[message.procedure](Arguments(message.payload), caller, spaces)
    except Undecodable:
        raise failures.undecodable() from None


def _check_flags(flags: int, allowed: int, function: str) -> None:
    if flags & ~allowed:
        raise failures.unsupported_flags(flags & ~allowed, f"virLockSpaceProtocolDispatch{function}")


def _check_caller(caller: Caller) -> Registered:
    if caller.restricted:
        raise failures.restricted()
    return caller.required_owner()


def _register(arguments: Arguments, caller: Caller, spaces: Lockspaces) -> None:
    owner = Registered(arguments.uuid(), arguments.text(), arguments.number(), arguments.number())
    _check_flags(arguments.number(), 0, "Register")
    if caller.restricted:
        raise failures.restricted()
    if owner.id == 0:
        raise failures.not_registered()
    caller.owner = owner


def _restrict(arguments: Arguments, caller: Caller, spaces: Lockspaces) -> None:
    _check_flags(arguments.number(), 0, "Restrict")
    _check_caller(caller)
    caller.restricted = True


def _new(arguments: Arguments, caller: Caller, spaces: Lockspaces) -> None:
    path = arguments.text()
    _check_flags(arguments.number(), 0, "New")
    _check_caller(caller)
    if not path:
        raise failures.default_lockspace_exists()
    if path in spaces:
        raise failures.lockspace_exists(path)
    spaces.make(path)


def _create_lockspace(arguments: Arguments, caller: Caller, spaces: Lockspaces) -> None:
    """Alone among all, it takes no flags and needs no owner."""
    path = arguments.text()
    if caller.restricted:
        raise failures.restricted()
    spaces.make(path)


def _create_resource(arguments: Arguments, caller: Caller, spaces: Lockspaces) -> None:
    path, name = arguments.text(), arguments.text()
    _check_flags(arguments.number(), 0, "CreateResource")
    _check_caller(caller)
    spaces.create(path, name)


def _delete_resource(arguments: Arguments, caller: Caller, spaces: Lockspaces) -> None:
    path, name = arguments.text(), arguments.text()
    _check_flags(arguments.number(), 0, "DeleteResource")
    _check_caller(caller)
    spaces.delete(path, name)


def _acquire_resource(arguments: Arguments, caller: Caller, spaces: Lockspaces) -> None:
    path, name, flags = arguments.text(), arguments.text(), arguments.number()
    _check_flags(flags, SHARED | AUTOCREATE, "AcquireResource")
    pid = _check_caller(caller).pid
    spaces.acquire(path, name, pid, shared=bool(flags & SHARED), autocreate=bool(flags & AUTOCREATE))


def _release_resource(arguments: Arguments, caller: Caller, spaces: Lockspaces) -> None:
    path, name = arguments.text(), arguments.text()
    _check_flags(arguments.number(), 0, "ReleaseResource")
    spaces.release(path, name, _check_caller(caller).pid)


_PROCEDURES: dict[int, Callable[[Arguments, Caller, Lockspaces], None]] = {
    Procedure.REGISTER: _register,
    Procedure.RESTRICT: _restrict,
    Procedure.NEW: _new,
    Procedure.CREATE_RESOURCE: _create_resource,
    Procedure.DELETE_RESOURCE: _delete_resource,
    Procedure.ACQUIRE_RESOURCE: _acquire_resource,
    Procedure.RELEASE_RESOURCE: _release_resource,
    Procedure.CREATE_LOCKSPACE: _create_lockspace,
}
