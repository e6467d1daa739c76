"""The errors of virtlockd, one function for each situation, worded as the real one words them (lockmanager.md 7.4)."""

from __future__ import annotations

import os

from backends.virtlockd.rpc import Error

# libvirt's error numbers
INTERNAL_ERROR = 1
INVALID_ARG = 8
OPERATION_DENIED = 29
RPC = 39
SYSTEM_ERROR = 38
OPERATION_INVALID = 55
RESOURCE_BUSY = 87

# and where an error comes from
FROM_RPC = 7
FROM_LOCKSPACE = 51


class Refused(Exception):
    """A call that is answered with an error."""

    def __init__(self, error: Error) -> None:
        super().__init__(error.message)
        self.error = error


def _worded(code: int, domain: int, prefix: str, detail: str) -> Refused:
    return Refused(Error(code, domain, f"{prefix}: {detail}", f"{prefix}: %s", detail))


def _plain(code: int, domain: int, text: str, errno: int = -1) -> Refused:
    return Refused(Error(code, domain, text, "%s", text, errno))


# --- the dispatcher ---


def unknown_program(program: int, version: int) -> Refused:
    return _plain(RPC, FROM_RPC, f"Cannot find program {program} version {version}")


def unknown_procedure(procedure: int) -> Refused:
    return _plain(RPC, FROM_RPC, f"unknown procedure: {procedure}")


def bad_status(status: int) -> Refused:
    return _plain(RPC, FROM_RPC, f"Unexpected message status {status}")


def undecodable() -> Refused:
    return _plain(RPC, FROM_RPC, "Unable to decode message payload")


def unsupported_flags(flags: int, function: str) -> Refused:
    text = f"unsupported flags (0x{flags:x}) in function {function}"
    return Refused(Error(INVALID_ARG, FROM_RPC, text, function, "flags", 0, 0))


def not_registered() -> Refused:
    return _invalid("lock owner details have not been registered")


def default_lockspace_exists() -> Refused:
    return _invalid("the default lockspace already exists")


def _invalid(detail: str) -> Refused:
    return _worded(OPERATION_INVALID, FROM_RPC, "Requested operation is not valid", detail)


def restricted() -> Refused:
    detail = "lock manager connection has been restricted"
    return _worded(OPERATION_DENIED, FROM_RPC, "operation forbidden", detail)


def unknown_lockspace(path: str) -> Refused:
    return _worded(INTERNAL_ERROR, FROM_RPC, "internal error", f"Lockspace for path {path} does not exist")


def lockspace_exists(path: str) -> Refused:
    return _worded(INTERNAL_ERROR, FROM_RPC, "internal error", f"Lockspace for path {path} already exists")


# --- lockspaces and resources ---


def not_a_directory(path: str) -> Refused:
    detail = f"Lockspace location {path} exists, but is not a directory"
    return _worded(INTERNAL_ERROR, FROM_LOCKSPACE, "internal error", detail)


def _system(text: str, errno: int) -> Refused:
    return _plain(SYSTEM_ERROR, FROM_LOCKSPACE, f"{text}: {os.strerror(errno)}", errno)


def cannot_create_lockspace(path: str, errno: int) -> Refused:
    return _system(f"Unable to create lockspace {path}", errno)


def cannot_open(path: str, errno: int) -> Refused:
    return _system(f"Unable to open resource {path}", errno)


def cannot_lock(path: str, errno: int) -> Refused:
    return _system(f"Unable to acquire lock on '{path}'", errno)


def cannot_delete(path: str, errno: int) -> Refused:
    return _system(f"Unable to delete lockspace resource {path}", errno)


def locked(name: str) -> Refused:
    return _worded(RESOURCE_BUSY, FROM_LOCKSPACE, "resource busy", f"Lockspace resource '{name}' is locked")


def not_locked(name: str) -> Refused:
    return _worded(RESOURCE_BUSY, FROM_LOCKSPACE, "resource busy", f"Lockspace resource '{name}' is not locked")


def not_owner(pid: int) -> Refused:
    detail = f"owner {pid} does not hold the resource lock"
    return _worded(INTERNAL_ERROR, FROM_LOCKSPACE, "internal error", detail)


def escapes(name: str) -> Refused:
    """The real one follows such a name out of the lockspace."""
    detail = f"resource name '{name}' leads out of the lockspace"
    return _worded(INVALID_ARG, FROM_LOCKSPACE, "invalid argument", detail)
