"""The conformance suite over paxos: embedded in automatic and manual mode, and through a real sanlock daemon."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from backends.conformance import LockManagerConformance
from backends.paxos import LOCKSPACE, PaxosManager, automatic_name
from leases.manager import LockManager, StateRefused
from tests.support.peers import SanlockDaemon, direct_init, zeroed_image

pytestmark = pytest.mark.slow


class _OnVolumes(LockManagerConformance):
    """The hosts stay joined for all tests of a class; each test has disks of its own."""

    root: ClassVar[Path]
    managers: ClassVar[dict[int, LockManager]]
    #: a part of the names of this test's disks
    serial: int = 0

    @pytest.fixture(autouse=True, scope="class")
    def _hosts(self, request: pytest.FixtureRequest) -> Iterator[None]:
        cls: Any = request.cls
        cls.root = Path(tempfile.mkdtemp(prefix="leasehold-paxos-", dir="/var/tmp"))
        cls.managers = {}
        cls.before_all()
        yield
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
        type(self).serial += 1

    def manager(self, host: int) -> LockManager:
        if host not in self.managers:
            self.managers[host] = self.new_manager(host)
        return self.managers[host]

    def new_manager(self, host: int) -> LockManager:
        raise NotImplementedError

    def disk(self, name: str) -> str:
        """Its path is all that matters."""
        return f"/images/{self.serial}/{name}.img"


class TestEmbedded(_OnVolumes):
    def new_manager(self, host: int) -> LockManager:
        return PaxosManager(str(self.root), host_id=host, io_timeout=1, fire_timeout=5)

    def lose(self, disk: str) -> None:
        """Write over the host lease: the next renewal finds out."""
        with open(self.root / LOCKSPACE, "r+b") as file:
            file.write(b"\xff" * 512)


@pytest.mark.peers
class TestThroughSanlock(_OnVolumes):
    """One daemon a host, as libvirt has it. What it does to a guest that loses its leases is shown elsewhere."""

    daemons: ClassVar[dict[int, SanlockDaemon]]

    @classmethod
    def before_all(cls) -> None:
        cls.daemons = {host: SanlockDaemon(f"host{host}").start() for host in (1, 2)}

    @classmethod
    def after_all(cls) -> None:
        for daemon in cls.daemons.values():
            daemon.close()

    def new_manager(self, host: int) -> LockManager:
        return PaxosManager(str(self.root), host_id=host, io_timeout=1, daemon=str(self.daemons[host].run_dir))
