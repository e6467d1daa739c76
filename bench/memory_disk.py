"""A block device in memory: what others do to the disks of this machine does not show in what is measured on it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def memory_disk(size: int) -> Iterator[str]:
    """The path of a loop device of `size` bytes over a file of a file system in memory. Needs root."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="leasehold-bench-") as file:
        file.write(bytes(size))
        file.flush()
        device = subprocess.check_output(["losetup", "--show", "-f", file.name], text=True).strip()
        kept = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            # it goes, with its last user, even if this process is killed
            subprocess.check_call(["losetup", "-d", device])
            # no flushes, as on a disk array whose cache is safe
            Path("/sys/block", Path(device).name, "queue/write_cache").write_text("write through")
            yield device
        finally:
            os.close(kept)
