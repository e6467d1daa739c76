"""The conformance suite over paxos: embedded in automatic and manual mode, and through a real sanlock daemon."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar
from uuid import UUID

import pytest

from backends.conformance import LockManagerConformance
from backends.paxos import LOCKSPACE, PaxosManager, automatic_name
from leases.daemon.wire import Resource as PlacedLease
from leases.manager import Access, LockManager, Owner, Resource
from paxos.errors import InvalidUse, NotJoined
from paxos.geometry import MIB
from tests.support.libvirt import until
from tests.support.peers import SanlockDaemon, direct_init, zeroed_image

pytestmark = pytest.mark.slow


class _OnVolumes(LockManagerConformance):
    """The hosts stay joined for all tests of a class; each test has disks of its own."""

    root: ClassVar[Path]
    managers: ClassVar[dict[int, LockManager]]
    #: whether the next test needs everything anew
    spoilt: bool = False
    #: a part of the names of this test's disks
    serial: int = 0

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _hosts(cls) -> Iterator[None]:
        cls.begin()
        yield
        cls.end()

    @classmethod
    def begin(cls) -> None:
        cls.root = Path(tempfile.mkdtemp(prefix="leasehold-paxos-", dir="/var/tmp"))
        cls.managers = {}
        cls.spoilt = False
        cls.before_all()

    @classmethod
    def end(cls) -> None:
        for manager in cls.managers.values():
            manager.close()
        cls.after_all()
        shutil.rmtree(cls.root)

    @classmethod
    def before_all(cls) -> None:
        pass

    @classmethod
    def after_all(cls) -> None:
        pass

    @pytest.fixture(autouse=True)
    def _new_disks(self) -> None:
        cls = type(self)
        cls.serial += 1
        if cls.spoilt:
            cls.end()
            cls.begin()

    def manager(self, host: int) -> LockManager:
        if host not in self.managers:
            self.managers[host] = self.new_manager(host)
        return self.managers[host]

    def new_manager(self, host: int) -> LockManager:
        raise NotImplementedError

    def disk(self, name: str) -> str:
        """Its path is all that matters."""
        return f"/images/{self.serial}/{name}.img"

    def lose(self, disk: str) -> None:
        """Write over the host lease of host 1: its next renewal finds out."""
        type(self).spoilt = True
        with open(self.lockspace_file(), "r+b") as file:
            file.write(b"\xff" * 512)

    def lockspace_file(self) -> str:
        return str(self.root / LOCKSPACE)


class TestEmbedded(_OnVolumes):
    def new_manager(self, host: int) -> LockManager:
        return PaxosManager(str(self.root), host_id=host, io_timeout=1, fire_timeout=5)


@pytest.mark.peers
class TestThroughSanlock(_OnVolumes):
    """One daemon a host, as libvirt has it."""

    adopts = False
    runs_programs = False

    daemons: ClassVar[dict[int, SanlockDaemon]]
    run_dirs: ClassVar[dict[int, str]]

    @classmethod
    def before_all(cls) -> None:
        cls.daemons = {host: SanlockDaemon(f"host{host}").start() for host in (1, 2)}
        cls.run_dirs = {host: str(daemon.run_dir) for host, daemon in cls.daemons.items()}

    @classmethod
    def after_all(cls) -> None:
        for daemon in cls.daemons.values():
            daemon.close()

    def new_manager(self, host: int) -> LockManager:
        return PaxosManager(str(self.root), host_id=host, io_timeout=1, daemon=self.run_dirs[host])

    def start_process(self) -> subprocess.Popen[bytes]:
        """Registered, as the plugin registers QEMU."""
        process = subprocess.Popen(
            [sys.executable, "-c", _REGISTERED, os.pathsep.join(sys.path), self.run_dirs[1]],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"registered\n"
        return process


class TestThroughOurDaemon(TestThroughSanlock):
    """The same, with `leasehold daemon` in the place of sanlock."""

    processes: ClassVar[list[subprocess.Popen[bytes]]]

    @classmethod
    def before_all(cls) -> None:
        cls.processes = []
        cls.run_dirs = {}
        for host in (1, 2):
            cls.run_dirs[host] = str(cls.root / f"run{host}")
            options = ["--run-dir", cls.run_dirs[host], "--watchdog", "none", "--host-name", f"host{host}"]
            command = [sys.executable, "-m", "leases.cli.main", "daemon", *options]
            cls.processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
            until(lambda host=host: (cls.root / f"run{host}" / "sanlock.sock").exists(), "the daemon's socket")

    @classmethod
    def after_all(cls) -> None:
        for process in cls.processes:
            process.kill()
            process.wait()


@pytest.mark.peers
class TestEmbeddedBesideSanlock(TestThroughSanlock):
    """Host 1 is a program with leases of its own, host 2 has a real sanlock: on the same files."""

    adopts = True
    runs_programs = True

    def new_manager(self, host: int) -> LockManager:
        if host == 1:
            return PaxosManager(str(self.root), host_id=1, io_timeout=1)
        return super().new_manager(host)

    def start_process(self) -> subprocess.Popen[bytes]:
        return LockManagerConformance.start_process(self)


@pytest.mark.peers
class TestManualMode(_OnVolumes):
    """Leases at offsets of one volume, laid out by sanlock's tools; the guests' disks are not looked at."""

    OFFSETS: ClassVar[dict[str, int]]
    volume: ClassVar[str]

    @classmethod
    def before_all(cls) -> None:
        cls.volume = zeroed_image(cls.root / "volume", 100)
        direct_init(f"LS:0:{cls.volume}:0")
        cls.OFFSETS = {}

    def new_manager(self, host: int) -> LockManager:
        return _LeasesForDisks(self, [f"LS:{host}:{self.volume}:0"])

    def lockspace_file(self) -> str:
        return self.volume

    def lease(self, disk: Resource) -> Resource:
        """The lease that the management application laid out for a disk."""
        name = automatic_name(disk.name)
        if name not in self.OFFSETS:
            self.OFFSETS[name] = MIB * (1 + len(self.OFFSETS))
            direct_init(f"LS:{name}:{self.volume}:{self.OFFSETS[name]}")
        return Resource.lease("LS", name, self.volume, self.OFFSETS[name], disk.access)


class _LeasesForDisks(PaxosManager):
    """Asks for a lease where the suite asks for a disk, as an application does that knows which is which."""

    def __init__(self, suite: TestManualMode, lockspaces: list[str]) -> None:
        super().__init__(lockspaces=lockspaces, io_timeout=1, fire_timeout=5)
        self._suite = suite

    def place(self, resource: Resource) -> PlacedLease | None:
        return super().place(self._suite.lease(resource))

    def require_leases(self, resources: Sequence[Resource]) -> None:
        super().require_leases([self._suite.lease(resource) for resource in resources])


def test_manual_mode_refuses_writers_without_a_lease() -> None:
    with PaxosManager(watchdog="none") as manager:
        guest = manager.guest(Owner(UUID(int=1), "vm1"), [Resource.disk("/images/a")])
        with pytest.raises(InvalidUse, match="no lease"):
            guest.acquire()


def test_manual_mode_does_not_care_for_disks_without_writers() -> None:
    with PaxosManager(watchdog="none") as manager:
        resources = [
            Resource.disk("/images/a", Access.READ_ONLY),
            Resource.disk("/images/b", Access.SHARED),
        ]
        guest = manager.guest(Owner(UUID(int=1), "vm1"), resources)
        guest.acquire()
        assert guest.release() == ""


def test_a_lease_in_a_lockspace_that_nobody_joined_is_refused() -> None:
    with PaxosManager(watchdog="none") as manager:
        guest = manager.guest(Owner(UUID(int=1), "vm1"), [Resource.lease("LS", "vm1", "/volume", MIB)])
        with pytest.raises(NotJoined):
            guest.acquire()


_REGISTERED = """
import os, sys, time
sys.path[:0] = sys.argv[1].split(os.pathsep)
from leases.client import connect
registration = connect(sys.argv[2]).register()
print("registered", flush=True)
time.sleep(3600)
"""
