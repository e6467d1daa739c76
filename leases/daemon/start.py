"""Starting the daemon: the process for kill paths first, then the run directory, then everything else."""

from __future__ import annotations

import sys

from leases.daemon.helper import Helper
from leases.daemon.rundir import RunDir, RunDirBusy
from leases.daemon.settings import Settings


def run(settings: Settings) -> int:
    """The daemon's whole life in the foreground. Its exit code."""
    helper = Helper.fork()
    from leases.daemon.daemon import Daemon, owner_ids

    run_dir = RunDir(settings.run_dir, *owner_ids(settings))
    try:
        run_dir.lock()
    except (RunDirBusy, OSError) as error:
        print(f"leasehold: {error}", file=sys.stderr)
        return 1
    Daemon(settings, helper).run(run_dir)
    return 0
