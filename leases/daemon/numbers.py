"""Every number of the daemon's socket protocol: commands, flags, modes, limits (daemon.md 2, 4, 6, 7, 12)."""

from __future__ import annotations

from enum import IntEnum, IntFlag

MAGIC = 0x04282010
#: protocol version: major in the upper 16 bits, minor in the lower
PROTOCOL = 0x00000001
SOCKET_NAME = "sanlock.sock"
DEFAULT_RUN_DIR = "/run/sanlock"
RUN_DIR_VARIABLE = "SANLOCK_RUN_DIR"

NAME_LENGTH = 48
PATH_LENGTH = 1024
#: resources in one ACQUIRE or RELEASE
MAX_RESOURCES = 8
MAX_DISKS = 4
MAX_LVB = 4096
#: path and args of KILLPATH, the NUL included
KILLPATH_FIELD = 128
#: text of one state record, the NUL included
MAX_STATE_TEXT = 4096
#: bytes; no reply to one question is longer (the log is 1 MiB, structures are at most that)
MAX_REPLY = 4 << 20
#: `data2` of a command that means the connection's own process, not another by its pid
OWN_CONNECTION = 0xFFFFFFFF


class Command(IntEnum):
    """The number of a command in the header."""

    REGISTER = 1
    ADD_LOCKSPACE = 2
    REM_LOCKSPACE = 3
    SHUTDOWN = 4
    STATUS = 5
    LOG_DUMP = 6
    ACQUIRE = 7
    RELEASE = 8
    INQUIRE = 9
    RESTRICT = 10
    REQUEST = 11
    ALIGN = 12
    EXAMINE_LOCKSPACE = 13
    EXAMINE_RESOURCE = 14
    HOST_STATUS = 15
    INQ_LOCKSPACE = 16
    KILLPATH = 17
    WRITE_LOCKSPACE = 18
    WRITE_RESOURCE = 19
    READ_LOCKSPACE = 20
    READ_RESOURCE = 21
    GET_LOCKSPACES = 22
    GET_HOSTS = 23
    READ_RESOURCE_OWNERS = 24
    SET_LVB = 25
    GET_LVB = 26
    CONVERT = 27
    VERSION = 28
    SHUTDOWN_WAIT = 29
    REG_EVENT = 30
    END_EVENT = 31
    SET_EVENT = 32
    SET_CONFIG = 33
    RENEWAL = 34
    FORMAT_RINDEX = 35
    UPDATE_RINDEX = 36
    LOOKUP_RINDEX = 37
    CREATE_RESOURCE = 38
    DELETE_RESOURCE = 39
    REBUILD_RINDEX = 40


class AddFlag(IntFlag):
    ASYNC = 0x1


class RemoveFlag(IntFlag):
    ASYNC = 0x1
    UNUSED = 0x2


class InquireLockspaceFlag(IntFlag):
    WAIT = 0x1


class AcquireFlag(IntFlag):
    """Of ACQUIRE; OWNER_NOWAIT also of CONVERT."""

    LVB = 0x1
    ORPHAN = 0x2
    ORPHAN_ONLY = 0x4
    OWNER_NOWAIT = 0x8


class ReleaseFlag(IntFlag):
    ALL = 0x1
    RENAME = 0x2
    ORPHAN = 0x4


class RestrictFlag(IntFlag):
    ALL = 0x1
    SIGKILL = 0x2
    SIGTERM = 0x4


class KillpathFlag(IntFlag):
    PID = 0x1


class WriteResourceFlag(IntFlag):
    CLEAR = 0x1


class RequestFlag(IntFlag):
    NEXT_LVER = 0x1


class RequestMode(IntEnum):
    """`data` of REQUEST: what is to happen to the holder. NONE with version 0 clears the request."""

    NONE = 0
    FORCE = 1
    GRACEFUL = 2


class EventFlag(IntFlag):
    """Of SET_EVENT."""

    CUR_GENERATION = 0x1
    CLEAR_HOSTID = 0x2
    CLEAR_EVENT = 0x4
    REPLACE_EVENT = 0x8
    ALL_HOSTS = 0x10


class ConfigCommand(IntEnum):
    """`data` of SET_CONFIG."""

    USED = 1
    UNUSED = 2
    USED_BY_ORPHANS = 4
    UNUSED_BY_ORPHANS = 8


class IndexFlag(IntFlag):
    """Of the rindex commands; ADD and REMOVE of UPDATE_RINDEX."""

    NO_LOCKSPACE = 0x1
    ADD = 0x10000
    REMOVE = 0x20000


class StatusDepth(IntEnum):
    """`data` of STATUS: after which records to stop."""

    ALL = 0
    DAEMON = 1
    CLIENTS = 2
    LOCKSPACES = 3


class SizeFlag(IntFlag):
    """Sector and align size in the flags of lockspaces, resources and indexes: one of each, or none."""

    ALIGN1M = 0x10
    ALIGN2M = 0x20
    ALIGN4M = 0x40
    ALIGN8M = 0x80
    SECTOR512 = 0x100
    SECTOR4K = 0x200


class LockspaceFlag(IntFlag):
    """In the reply of GET_LOCKSPACES: being added, being removed."""

    ADD = 0x1
    REM = 0x2


class ResourceFlag(IntFlag):
    LVER = 0x1
    NUM_HOSTS = 0x2
    SHARED = 0x4
    PERSISTENT = 0x8


class HostState(IntEnum):
    UNKNOWN = 1
    FREE = 2
    LIVE = 3
    FAIL = 4
    DEAD = 5


class StateType(IntEnum):
    """What a record of STATUS, HOST_STATUS or RENEWAL tells about."""

    DAEMON = 1
    CLIENT = 2
    LOCKSPACE = 3
    RESOURCE = 4
    HOST = 5
    RENEWAL = 6
