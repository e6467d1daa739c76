"""One daemon with many lockspaces, processes and leases: how long each step takes, idle CPU, memory.

    python3 -m bench.daemon_scale --daemon leasehold --lockspaces 100 --processes 1000 --leases 5
    python3 -m bench.daemon_scale --daemon sanlock   --lockspaces 100 --processes 900  --leases 5

Leases are spread evenly over the lockspaces. All lie in one sparse image, so figures of formatting mean little.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from leases.client import Client
from tests.support.leasehold_daemon import DAEMONS
from tests.support.peers import SanlockDaemon

T = TypeVar("T")
MIB = 1 << 20
IDLE_SECONDS = 20.0

#: forks registered processes, each of which takes its leases, and says when all have them
_HOLDERS = """
import os, signal, sys
from leases.client import Client
path, *leases = sys.argv[1:]
each, leases = int(leases[0]), leases[1:]
ready = os.pipe()
for start in range(0, len(leases), each):
    if os.fork() == 0:
        registration = Client(path).register()
        for lease in leases[start : start + each]:
            registration.acquire(lease)
        os.write(ready[1], b"x")
        signal.pause()
for _ in range(0, len(leases), each):
    os.read(ready[0], 1)
print("ready", flush=True)
sys.stdin.read()
os.killpg(0, signal.SIGKILL)
"""


class Layout:
    """Lockspace n, then its leases, in one image."""

    def __init__(self, image: Path, lockspaces: int, leases: int) -> None:
        self.image = image
        self.lockspaces = lockspaces
        self.each = -(-leases // lockspaces)
        with open(image, "wb") as file:
            file.truncate(lockspaces * (self.each + 1) * MIB)

    def lockspace(self, number: int, host_id: int) -> str:
        return f"L{number}:{host_id}:{self.image}:{number * (self.each + 1)}M"

    def lease(self, number: int) -> str:
        lockspace, place = divmod(number, self.each)
        return f"L{lockspace}:R{place}:{self.image}:{lockspace * (self.each + 1) + 1 + place}M"


def timed(what: str, action: Callable[[], T]) -> T:
    begun = time.monotonic()
    result = action()
    print(f"{what:28} {time.monotonic() - begun:8.2f} s")
    return result


def processes_of(daemon: SanlockDaemon) -> list[int]:
    """The daemon and its children."""
    found = subprocess.run(["pgrep", "-P", str(daemon.pid)], capture_output=True, text=True).stdout
    return [daemon.pid, *map(int, found.split())]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def measure(daemon: SanlockDaemon, layout: Layout, processes: int, leases: int, io_timeout: int) -> None:
    client = Client(str(daemon.socket_path))
    with ThreadPoolExecutor(8) as threads:
        names = range(layout.lockspaces)
        timed("format lockspaces", lambda: list(threads.map(lambda n: _format(client, layout, n, io_timeout), names)))
        wanted = range(processes * leases)
        timed("format leases", lambda: list(threads.map(lambda n: client.write_resource(layout.lease(n)), wanted)))
    with ThreadPoolExecutor(layout.lockspaces) as threads:
        join = lambda n: client.add_lockspace(layout.lockspace(n, 1), io_timeout)  # noqa: E731
        timed("join all at once", lambda: list(threads.map(join, range(layout.lockspaces))))
    holders = timed("acquire all", lambda: _hold(daemon, layout, processes, leases))
    time.sleep(3 * io_timeout)
    before = {pid: cpu_seconds(pid) for pid in processes_of(daemon)}
    time.sleep(IDLE_SECONDS)
    for pid, used in before.items():
        share = (cpu_seconds(pid) - used) / IDLE_SECONDS * 100
        print(f"process {pid:<20} {share:8.2f} % CPU when idle, {resident_mib(pid):.0f} MiB of its own")
    answers = []
    for _ in range(500):
        begun = time.monotonic()
        client.version()
        answers.append(time.monotonic() - begun)
    median, late = statistics.median(answers) * 1e3, sorted(answers)[494] * 1e3
    print(f"{'version, median and 99th':28} {median:8.2f} ms, {late:.2f} ms")
    status = timed("status", client.status)
    print(f"{'records of leases':28} {len(status.resources):8}")
    for holder in holders:
        assert holder.stdin is not None
        holder.stdin.close()
        holder.wait()
    timed("release after their deaths", lambda: _until(lambda: not client.status().resources))


def _format(client: Client, layout: Layout, number: int, io_timeout: int) -> None:
    client.write_lockspace(layout.lockspace(number, 0), io_timeout=io_timeout)


def _hold(daemon: SanlockDaemon, layout: Layout, processes: int, leases: int) -> list[subprocess.Popen[str]]:
    step = max(1, processes // 10) * leases
    total = processes * leases
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _HOLDERS, str(daemon.socket_path), str(leases), *map(layout.lease, numbers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for start in range(0, total, step)
        if (numbers := range(start, min(total, start + step)))
    ]
    for one in started:
        assert one.stdout is not None and one.stdout.readline() == "ready\n"
    return started


def _until(true: Callable[[], bool]) -> None:
    while not true():
        time.sleep(0.2)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--daemon", choices=sorted(DAEMONS), default="leasehold")
    options.add_argument("--lockspaces", type=int, default=100)
    options.add_argument("--processes", type=int, default=1000)
    options.add_argument("--leases", type=int, default=5, help="of each process")
    options.add_argument("--io-timeout", type=int, default=5)
    given = options.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place, DAEMONS[given.daemon]("bench") as daemon:
        layout = Layout(Path(place) / "image", given.lockspaces, given.processes * given.leases)
        measure(daemon, layout, given.processes, given.leases, given.io_timeout)


if __name__ == "__main__":
    main()
