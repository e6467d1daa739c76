"""With which code the command ends, so that scripts can tell what to do without reading the message.

The numbers are those of <sysexits.h>; `leasehold run` ends with its command's own code instead, once it started.
"""

from __future__ import annotations

import errno

from paxos.errors import (
    BadRecord,
    DiskError,
    HeldElsewhere,
    InvalidUse,
    LeaseholdError,
    LeaseLost,
    TryAgain,
    WatchdogUnavailable,
)

#: the command line, or what it asks for, can't be
USAGE = 64
#: what lies on the volume is not what must be there
BAD_DATA = 65
#: something that is needed does not work here, e.g. the watchdog
UNAVAILABLE = 69
#: the disk, or the path to it
IO_ERROR = 74
#: somebody else holds the lease; the same may work later
HELD = 75
#: the lease was lost while it was held, and the command that used it was stopped
LOST = 76
#: this user may not do that
NO_PERMISSION = 77

#: `leasehold run`: as the shell and env(1) have it
NOT_EXECUTABLE, NOT_FOUND = 126, 127
#: ended by signal n: this plus n
SIGNALLED = 128


def exit_code(error: BaseException) -> int:
    """The code for an error that ends the command."""
    if isinstance(error, DiskError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return NO_PERMISSION
    if isinstance(error, PermissionError):
        return NO_PERMISSION
    for kind, code in (
        (InvalidUse, USAGE),
        (BadRecord, BAD_DATA),
        (WatchdogUnavailable, UNAVAILABLE),
        (HeldElsewhere, HELD),
        (TryAgain, HELD),
        (LeaseLost, LOST),
        (DiskError, IO_ERROR),
        (OSError, IO_ERROR),
        (LeaseholdError, UNAVAILABLE),
    ):
        if isinstance(error, kind):
            return code
    return UNAVAILABLE
