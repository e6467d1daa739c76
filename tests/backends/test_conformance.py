"""The one conformance suite, over nop and fcntl on the images and in a lockspace directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from backends.conformance import LockManagerConformance
from backends.fcntl import FcntlManager, indirect_name
from backends.nop import NopManager
from leases.manager import LockManager, open_manager, registered
from paxos.errors import InvalidUse


class _OnFiles(LockManagerConformance):
    """Disks are small files in a directory; the managers of the two hosts are two objects."""

    managers: dict[int, LockManager]
    place: Path

    @pytest.fixture(autouse=True)
    def _hosts(self, images: Path) -> object:
        self.place = images
        self.managers = {}
        yield
        for manager in self.managers.values():
            manager.close()

    def manager(self, host: int) -> LockManager:
        if host not in self.managers:
            self.managers[host] = self.new_manager()
        return self.managers[host]

    def new_manager(self) -> LockManager:
        raise NotImplementedError

    def disk(self, name: str) -> str:
        path = self.place / f"{name}.img"
        if not path.exists():
            path.write_bytes(bytes(8192))
        return str(path)


class TestNop(_OnFiles):
    def new_manager(self) -> LockManager:
        return NopManager()


@pytest.mark.slow
class TestFcntlDirect(_OnFiles):
    def new_manager(self) -> LockManager:
        return FcntlManager(io_timeout=1, fire_timeout=5)

    def lose(self, disk: str) -> None:
        self.replace(disk)

    def replace(self, path: str) -> None:
        other = f"{path}.new"
        Path(other).write_bytes(bytes(8192))
        os.rename(other, path)


@pytest.mark.slow
class TestFcntlInADirectory(TestFcntlDirect):
    def new_manager(self) -> LockManager:
        return FcntlManager(str(self.place / "lockspace"), io_timeout=1, fire_timeout=5)

    def lose(self, disk: str) -> None:
        self.replace(str(self.place / "lockspace" / indirect_name(disk)))


def test_lock_managers_are_found_by_name() -> None:
    assert {"nop", "fcntl", "paxos"} <= set(registered())
    with open_manager("nop") as manager:
        assert manager.name == "nop"


def test_an_unknown_lock_manager_is_told_with_the_known_ones() -> None:
    with pytest.raises(InvalidUse, match="nop"):
        open_manager("no such")


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(InvalidUse, match="nop"):
        open_manager("nop", colour="red")
