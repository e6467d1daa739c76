"""A guest moves between two machines that share its disk, and its locks move with it: plugins and hook."""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from backends.libvirt_hook import RUN_DIR
from tests.support.libvirt import (
    OURS,
    REAL,
    ROOT,
    Libvirtd,
    LibvirtError,
    LibvirtGuest,
    Machine,
    machine,
    other_machine,
    until,
)
from tests.support.peers import images

__all__ = ["images", "machine", "other_machine"]
pytestmark = [pytest.mark.peers, pytest.mark.slow]


@dataclass(frozen=True)
class Pair:
    """Two hosts under one lock manager, with a disk and room for leases that both see."""

    source: Libvirtd
    destination: Libvirtd
    disk: str

    def guests(self, name: str) -> tuple[LibvirtGuest, LibvirtGuest]:
        """One guest, as either of the hosts knows it."""
        return self.source.guest(name, self.disk), self.destination.guest(name, self.disk)


@pytest.fixture
def disk(images: Path) -> str:
    path = images / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return str(path)


def lockd(which: str, machines: list[Machine], images: Path) -> list[Libvirtd]:
    for one in machines:
        one.start_virtlockd(which)
    return [one.start_libvirtd("lockd", auto_disk_leases=1) for one in machines]


def sanlock(which: str, machines: list[Machine], images: Path) -> list[Libvirtd]:
    leases = images / "leases"
    leases.mkdir()
    for one in machines:
        one.start_sanlock(which, host_name=one.directory.name)
    return [
        one.start_libvirtd("sanlock", auto_disk_leases=1, disk_lease_dir=str(leases), host_id=number, io_timeout=1)
        for number, one in enumerate(machines, 1)
    ]


def hook(which: str, machines: list[Machine], images: Path) -> list[Libvirtd]:
    for one in machines:
        directory = f'directory = "{images}/leases"\n' if which == "paxos" else ""
        settings = f"io_timeout = 1\nfire_timeout = 5\n{directory}"
        install_hook(one, f'lock_manager = "{which}"\n[settings]\n{settings}')
    return [one.start_libvirtd("") for one in machines]


def install_hook(machine: Machine, config: str) -> None:
    script = machine.path("/etc/libvirt/hooks/qemu")
    script.parent.mkdir(parents=True)
    script.write_text(
        f"#!/bin/sh\nexport PYTHONPATH={ROOT}\n"
        f'exec {sys.executable} -m leases.cli.main libvirt-hook --config /srv/hook.toml "$@"\n'
    )
    script.chmod(0o755)
    machine.path("/srv/hook.toml").write_text(config)


@pytest.fixture(
    params=[(lockd, OURS), (lockd, REAL), (sanlock, OURS), (sanlock, REAL), (hook, "fcntl"), (hook, "paxos")],
    ids=lambda param: f"{param[0].__name__}-{param[1]}",
)
def pair(request: pytest.FixtureRequest, machine: Machine, other_machine: Machine, images: Path, disk: str) -> Pair:
    start, which = request.param
    source, destination = start(which, [machine, other_machine], images)
    return Pair(source, destination, disk)


def starts(guest: LibvirtGuest) -> bool:
    try:
        guest.start()
    except LibvirtError:
        return False
    return True


def test_a_guest_moves_and_its_locks_with_it(pair: Pair) -> None:
    here, there = pair.guests("guestA")
    rival_here, rival_there = pair.guests("guestB")
    here.start()
    assert not starts(rival_there)
    here.migrate(pair.destination)
    assert here.state() == Libvirtd.SHUT_OFF
    assert there.state() == Libvirtd.RUNNING
    until(lambda: arrived(there), "the locks' arrival")
    assert not starts(rival_here)
    assert not starts(rival_there)
    assert there.state() == Libvirtd.RUNNING
    there.destroy()
    until(lambda: starts(rival_here), "the rival's start once the guest is gone")


def arrived(guest: LibvirtGuest) -> bool:
    """With a plugin the locks are there before the guest goes on; under the hook its holder waits for them."""
    path = guest.libvirtd.machine.path(f"{RUN_DIR}/{guest.uuid}.sock")
    if not path.exists():
        return True
    with socket.socket(socket.AF_UNIX) as holder:
        holder.connect(str(path))
        holder.sendall(b"here?\n")
        return holder.makefile().readline() == "ok\n"


def test_a_guest_moves_there_and_back(pair: Pair) -> None:
    here, there = pair.guests("guestA")
    here.start()
    here.migrate(pair.destination)
    until(lambda: arrived(there), "the locks' arrival")
    there.migrate(pair.source)
    assert there.state() == Libvirtd.SHUT_OFF
    assert here.state() == Libvirtd.RUNNING
