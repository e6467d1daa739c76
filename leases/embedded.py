"""The user's own volume: a file in the state directory, made on first use, for one machine's programs.

It excludes programs of this user on this machine from each other, with the same protocol as a volume on shared
storage, but with short times: a second to the disk is plenty here.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from leases.lockspace import Lockspace
from leases.volume import Volume, no_progress
from paxos.errors import HeldElsewhere, NameTaken, TryAgain
from paxos.host_lease import Progress

LOCKSPACE = "local"
IO_TIMEOUT = 1
#: leases that the volume has room for
LEASES = 64
#: seconds to wait for another program that is just adding a lease
_INDEX_PATIENCE = 30.0


def embedded_path() -> Path:
    """$XDG_STATE_HOME/leasehold/volume, or in ~/.local/state."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return base / "leasehold" / "volume"


def embedded_volume(progress: Progress | None = None) -> Volume:
    """The volume, made if it is not there yet. Raises BadRecord if what is there is none, DiskError, OSError."""
    path = embedded_path()
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _one_at_a_time(path.parent):
            if not path.exists():
                _make(path, progress or no_progress)
    return Volume(str(path))


def _make(path: Path, progress: Progress) -> None:
    """Under another name first: whoever sees the file sees all of it."""
    unfinished = path.with_name(path.name + ".new")
    unfinished.unlink(missing_ok=True)
    progress(f"first use: making the volume {path}", 1.0)
    try:
        Volume.create(str(unfinished), LOCKSPACE, leases=LEASES, io_timeout=IO_TIMEOUT, progress=progress)
        os.rename(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    fd = os.open(directory / "making", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def ensure_lease(lockspace: Lockspace, name: str) -> None:
    """Make the lease `name` if the index has none; others may do so at the same time.

    Raises IndexFull, HeldElsewhere and TryAgain (others keep changing the index), BadRecord, DiskError.
    """
    deadline = time.monotonic() + _INDEX_PATIENCE
    while not lockspace.has_lease(name):
        try:
            lockspace.create_lease(name)
        except NameTaken:
            return
        except (HeldElsewhere, TryAgain):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
