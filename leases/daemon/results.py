"""Result codes of the socket protocol: names, texts, and the errors they become in a client.

A reply carries 0, a negative errno (above -200) or one of sanlock's own codes (daemon.md section 9). What an
errno means depends on the command: -ENOENT is "not held" of CONVERT and "cannot open" of ACQUIRE.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from leases.daemon.numbers import Command
from paxos import errors
from paxos.errors import InvalidUse, LeaseholdError, TryAgain

#: code -> name, text
SANLOCK_RESULTS: Mapping[int, tuple[str, str]] = {
    -201: ("ERROR", "General error"),
    -202: ("AIO_TIMEOUT", "IO timeout"),
    -203: ("WD_ERROR", "Watchdog device error"),
    -210: ("DBLOCK_READ", "Lease read error in dblock"),
    -211: ("DBLOCK_WRITE", "Lease write error in dblock"),
    -212: ("DBLOCK_LVER", "Lease was acquired by another host in new ballot"),
    -213: ("DBLOCK_MBAL", "Lease was acquired by another host in current ballot"),
    -214: ("DBLOCK_CHECKSUM", "Lease checksum error in dblock"),
    -220: ("LEADER_READ", "Lease read error in leader"),
    -221: ("LEADER_WRITE", "Lease write error in leader"),
    -222: ("LEADER_DIFF", "Lease read inconsistent"),
    -223: ("LEADER_MAGIC", "Lease does not exist on storage"),
    -224: ("LEADER_VERSION", "Lease format version on storage is not recognized"),
    -225: ("LEADER_SECTORSIZE", "Lease sector size is inconsistent"),
    -226: ("LEADER_LOCKSPACE", "Lease lockspace name is incorrect"),
    -227: ("LEADER_RESOURCE", "Lease resource name is incorrect"),
    -228: ("LEADER_NUMHOSTS", "Lease num_hosts is incorrect"),
    -229: ("LEADER_CHECKSUM", "Lease checksum error in leader"),
    -230: ("ADDLS_SIZES", "Sector and align size are no valid pair"),
    -231: ("ADDLS_INVALID_HOSTID", "Host ID is not between 1 and the maximum"),
    -240: ("ACQUIRE_LVER", "Lease is at another version than required"),
    -241: ("ACQUIRE_LOCKSPACE", "Lease lockspace is not found"),
    -242: ("ACQUIRE_IDDISK", "Lease lockspace disk cannot be opened"),
    -243: ("ACQUIRE_IDLIVE", "Lease is held by another host"),
    -244: ("ACQUIRE_OWNED", "Lease was acquired by another host in other ballot"),
    -245: ("ACQUIRE_OTHER", "Lease was acquired by another host in local commit"),
    -246: ("ACQUIRE_SHRETRY", "Lease is held by another host for shared acquire"),
    -247: ("ACQUIRE_OWNED_RETRY", "Lease is owned by another host"),
    -250: ("RELEASE_LVER", "Lease release version is incorrect"),
    -251: ("RELEASE_OWNER", "Lease release owner is incorrect"),
    -260: ("RENEW_OWNER", "Lease renew owner is incorrect"),
    -261: ("RENEW_DIFF", "Lease renew data has changed"),
    -262: ("HOSTID_BUSY", "Lease host ID is being used by another host"),
    -270: ("REQUEST_MAGIC", "Lease request block has invalid data"),
    -271: ("REQUEST_VERSION", "Lease request block has invalid version"),
    -272: ("REQUEST_OLD", "Lease request has newer lease version"),
    -273: ("REQUEST_LVER", "Lease request block has newer version"),
    -274: ("RINDEX_MAGIC", "No resource index on storage"),
    -275: ("RINDEX_VERSION", "Resource index version is not recognized"),
    -276: ("RINDEX_LOCKSPACE", "Resource index lockspace name is incorrect"),
    -277: ("RINDEX_OFFSET", "Offset is not one of the resource index"),
    -278: ("RINDEX_DIFF", "Resource index has another name at the offset"),
}


def result_name(code: int) -> str:
    """`LEADER_MAGIC`, `ENOENT`; `UNKNOWN` for a number without a name."""
    if code in SANLOCK_RESULTS:
        return SANLOCK_RESULTS[code][0]
    return errno.errorcode.get(-code, "UNKNOWN")


def result_text(code: int) -> str:
    """What a negative result means, in a few words."""
    if code in SANLOCK_RESULTS:
        return SANLOCK_RESULTS[code][1]
    return os.strerror(-code) if -200 < code < 0 else "unknown result"


# --------------------------------------------------------------------- errors that only a daemon's client has


class DaemonRefused(LeaseholdError):
    """A result that has no class of its own. `command`, `subject`, `code`, `name`."""

    template = "{command} {subject}: {text} ({name}, {code})"


class UnknownClient(InvalidUse):
    """No process with this pid is registered with the daemon."""

    code, name = -errno.ESRCH, "ESRCH"
    template = "{command} {subject}: no such process is registered"


class OrphanExists(InvalidUse):
    """The lease is an orphan of a dead client: it must be acquired as such, and in the mode it has."""

    code, name = -errno.EUCLEAN, "EUCLEAN"
    template = "{resource} is an orphan"
    advice = "acquire it with orphan=True, or release the orphan"


class AlreadyJoined(InvalidUse):
    code, name = -errno.EEXIST, "EEXIST"
    template = "{lockspace} is joined already"


class ModeUnchanged(InvalidUse):
    """The lease has the mode that CONVERT asked for already."""

    code, name = -errno.EALREADY, "EALREADY"
    template = "{resource} is in that mode already"


class DaemonUnreachable(LeaseholdError):
    """Nobody listens at the socket. `errno` and `code` say why."""

    code, name = -errno.ECONNREFUSED, "ECONNREFUSED"
    template = "cannot reach the daemon at {path}: {reason}"
    advice = "is it running, with the same run directory?"


class DaemonGone(LeaseholdError):
    """The connection ended within a command: the daemon died, or had enough of this connection."""

    code, name = -errno.ENOTCONN, "ENOTCONN"
    template = "the daemon ended the connection within {command}"


class DaemonSilent(LeaseholdError):
    """No answer in time. Whether the command was carried out is unknown."""

    code, name = -errno.ETIMEDOUT, "ETIMEDOUT"
    template = "the daemon did not answer {command} within {timeout} s"
    advice = "it may be busy, or ignore this connection (RESTRICT ALL, unknown command)"


# ------------------------------------------------------------------------------------------ results to errors

_BY_CODE: Mapping[int, type[LeaseholdError]] = {
    -202: errors.IOTimeout,
    -203: errors.WatchdogUnavailable,
    -210: errors.BallotReadFailed,
    -211: errors.BallotWriteFailed,
    -212: errors.BallotsExhausted,
    -213: TryAgain,
    -214: errors.BlockChecksumError,
    -220: errors.DiskError,
    -221: errors.DiskError,
    -222: errors.BadRecord,
    -223: errors.LeaderMagicError,
    -224: errors.LeaderVersionError,
    -225: errors.SectorSizeError,
    -226: errors.LockspaceNameError,
    -227: errors.ResourceNameError,
    -228: errors.NumHostsError,
    -229: errors.LeaderChecksumError,
    -230: errors.SizesInvalid,
    -231: errors.HostIdInvalid,
    -240: errors.LverMismatch,
    -241: errors.NotJoined,
    -242: errors.CannotOpen,
    -243: errors.LeaseHeld,
    -244: errors.LeaseOwned,
    -245: errors.LeaseOther,
    -246: errors.SharedRetries,
    -247: errors.OwnerMayBeDead,
    -250: errors.ReleaseVersion,
    -251: errors.ReleaseOwner,
    -260: errors.RenewOwner,
    -261: errors.RenewDiff,
    -262: errors.HostIdBusy,
    -270: errors.RequestMagicError,
    -271: errors.RequestVersionError,
    -272: errors.RequestOld,
    -273: errors.RequestSuperseded,
    -274: errors.IndexMagicError,
    -275: errors.IndexVersionError,
    -276: errors.IndexLockspaceError,
    -277: errors.IndexOffsetError,
    -278: errors.IndexNameError,
    -errno.ESRCH: UnknownClient,
    -errno.EAGAIN: TryAgain,
    -errno.EBUSY: TryAgain,
    -errno.EINPROGRESS: TryAgain,
    -errno.EINVAL: InvalidUse,
    -errno.E2BIG: InvalidUse,
    -errno.ERANGE: InvalidUse,
    -errno.ENODEV: errors.CannotOpen,
    -errno.EACCES: errors.CannotOpen,
    -errno.EIO: errors.DiskError,
    -errno.ENOSPC: errors.NotJoined,
    -errno.EUCLEAN: OrphanExists,
    -errno.EALREADY: ModeUnchanged,
}

_NOT_JOINED = (
    Command.REM_LOCKSPACE,
    Command.INQ_LOCKSPACE,
    Command.GET_HOSTS,
    Command.SET_CONFIG,
    Command.SET_EVENT,
    Command.REG_EVENT,
    Command.END_EVENT,
)
_NOT_HELD = (Command.CONVERT, Command.SET_LVB, Command.GET_LVB)
_OPENING = (
    Command.ACQUIRE,
    Command.WRITE_RESOURCE,
    Command.READ_RESOURCE,
    Command.READ_RESOURCE_OWNERS,
)

_BY_COMMAND: Mapping[tuple[Command, int], type[LeaseholdError]] = {
    **dict.fromkeys(((command, -errno.ENOENT) for command in _NOT_JOINED), errors.NotJoined),
    **dict.fromkeys(((command, -errno.ENOENT) for command in _NOT_HELD), errors.NotHeld),
    **dict.fromkeys(((command, -errno.ENOENT) for command in _OPENING), errors.CannotOpen),
    (Command.ACQUIRE, -errno.EEXIST): errors.AlreadyHeld,
    (Command.ADD_LOCKSPACE, -errno.EEXIST): AlreadyJoined,
    (Command.CONVERT, -errno.EAGAIN): errors.SharedHolders,
    (Command.RELEASE, -errno.EPERM): errors.NotHeld,
    (Command.LOOKUP_RINDEX, -errno.ENOENT): errors.NoSuchLease,
    (Command.DELETE_RESOURCE, -errno.ENOENT): errors.NoSuchLease,
}

_MESSAGE = DaemonRefused.template


def refusal(command: Command, code: int, subject: str = "") -> LeaseholdError:
    """The error for a negative result of `command` about `subject`.

    The daemon tells no more than the number. So the facts that an error's class usually has may be missing, and
    its message is then made of what is known here.
    """
    kind = _BY_COMMAND.get((command, code), _BY_CODE.get(code, DaemonRefused))
    text = result_text(code)
    facts: dict[str, Any] = {
        "command": command.name,
        "subject": subject,
        "code": code,
        "errno": -code,
        "name": result_name(code),
        "text": text,
        # by the names that the classes use
        "resource": subject,
        "lockspace": subject,
        "disk": subject,
        "reason": text,
    }
    if not _tells_enough(kind.template, facts):
        facts["template"] = _MESSAGE
    return kind(**facts)


def _tells_enough(template: str, facts: Mapping[str, Any]) -> bool:
    """Whether a class's own message can be made of these facts, and says what it is about."""
    try:
        return bool(template.format_map(facts) != facts["reason"])
    except KeyError:
        return False
