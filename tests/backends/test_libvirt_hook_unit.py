"""The hook's parts without libvirt: what is read from a domain's XML, and the holder's hand-over between hosts."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from backends.libvirt_domain import parse_domain
from backends.libvirt_hook import Config, as_json, from_json, run
from backends.paxos import PaxosManager
from leases.manager import Access, FailureAction, Owner, Resource
from paxos.errors import InvalidUse
from tests.support.libvirt import until
from tests.support.peers import images

__all__ = ["images"]

VM = UUID("4dea22b3-1d52-d8f3-2516-782e98ab3fa0")
DOMAIN = f"""
<domain type='kvm' id='7'>
  <name>vm1</name><uuid>{VM}</uuid>
  <on_lockfailure>pause</on_lockfailure>
  <devices>
    <disk type='file' device='disk'><source file='/images/a.img'/><target dev='vda'/></disk>
    <disk type='block'><source dev='/dev/vg/b'/><shareable/></disk>
    <disk type='file'><source file='/images/c.img'/><readonly/></disk>
    <disk type='file' device='cdrom'><source file='/images/d.iso'/></disk>
    <disk type='file' device='cdrom'/>
    <disk type='network'><source protocol='rbd' name='pool/e'/></disk>
    <lease><lockspace>area</lockspace><key>k</key><target path='/srv' offset='1048576'/></lease>
    <lease><key>l</key><target path='/srv'/></lease>
  </devices>
</domain>
"""


def test_a_domain_s_resources_are_those_that_libvirt_itself_picks() -> None:
    domain = parse_domain(DOMAIN)
    assert domain.owner == Owner(VM, "vm1", id=7)
    assert domain.on_failure is FailureAction.PAUSE
    assert domain.resources == (
        Resource.lease("area", "k", "/srv", 1048576),
        Resource.lease("", "l", "/srv"),
        Resource.disk("/images/a.img"),
        Resource.disk("/dev/vg/b", Access.SHARED),
        Resource.disk("/images/c.img", Access.READ_ONLY),
        Resource.disk("/images/d.iso", Access.READ_ONLY),
    )
    assert tuple(from_json(as_json(resource)) for resource in domain.resources) == domain.resources


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "<domain>",
        "<domain/>",
        f"<domain><uuid>{VM}</uuid></domain>",
        "<domain><name>a</name><uuid>no</uuid></domain>",
        f"<domain><name>a</name><uuid>{VM}</uuid><devices><lease><key>k</key></lease></devices></domain>",
        f"<domain><name>a</name><uuid>{VM}</uuid><on_lockfailure>explode</on_lockfailure></domain>",
    ],
)
def test_what_is_no_domain_is_refused(xml: str) -> None:
    with pytest.raises(InvalidUse):
        parse_domain(xml)


def test_stations_that_do_not_matter_need_no_domain() -> None:
    for operation in ("start", "migrate", "restore", "attach"):
        run("vm1", operation, "end", io.StringIO(""))


def test_the_hook_s_own_name_must_be_that_of_the_domain() -> None:
    with pytest.raises(InvalidUse, match="vm2"):
        run("vm2", "prepare", "begin", io.StringIO(DOMAIN))


def test_a_configuration_that_cant_be_read_refuses_guests(tmp_path: Path) -> None:
    file = tmp_path / "hook.toml"
    assert Config.read(str(file)) == Config("fcntl", {})
    for text in ("lock_manager = ", "no_such_key = 1"):
        file.write_text(text)
        with pytest.raises(InvalidUse, match=r"hook\.toml"):
            Config.read(str(file))


# ----------------------------------------------------------------------------------------- the holder's hand-over

DISK = "/images/a.img"


class Holder:
    """The process on the destination, waiting for the locks of a guest that is at the source."""

    def __init__(self, leases: Path) -> None:
        self.socket = leases.with_name("holder.sock")
        order = {
            "lock_manager": "paxos",
            "settings": {"directory": str(leases), "io_timeout": 1, "fire_timeout": 5, "host_id": 2},
            "uuid": str(VM),
            "name": "vm1",
            "pid": 0,
            "wait": True,
            "socket": str(self.socket),
            "resources": [as_json(Resource.disk(DISK))],
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "backends.libvirt_holder"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order))
        self.process.stdin.close()
        assert self.process.stdout.readline() == "ok\n"

    def ask(self, question: str) -> str:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(str(self.socket))
            channel.sendall(f"{question}\n".encode())
            return channel.makefile().readline().strip()


@pytest.fixture
def leases(images: Path) -> Path:
    return images / "leases"


@pytest.fixture
def source(leases: Path) -> Iterator[PaxosManager]:
    with PaxosManager(str(leases), host_id=1, io_timeout=1, fire_timeout=5) as manager:
        yield manager


@pytest.fixture
def qemu() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"]) as process:
        yield process
        process.kill()


@pytest.mark.slow
def test_a_guest_that_moves_here_gets_its_locks_when_the_source_gives_them_back(
    source: PaxosManager, leases: Path, qemu: subprocess.Popen[bytes]
) -> None:
    guest = source.guest(Owner(VM, "vm1"), [Resource.disk(DISK)])
    guest.acquire()
    holder = Holder(leases)
    assert holder.ask(f"adopt {qemu.pid}") == "ok"
    assert holder.ask("here?") == "waiting"
    guest.release()
    until(lambda: holder.ask("here?") == "ok", "the locks' arrival")
    qemu.kill()
    assert holder.process.wait(60) == 0
    assert not holder.socket.exists()


@pytest.mark.slow
def test_a_guest_whose_disk_somebody_else_had_on_the_way_is_killed(
    source: PaxosManager, leases: Path, qemu: subprocess.Popen[bytes]
) -> None:
    guest, other = (source.guest(Owner(VM, name), [Resource.disk(DISK)]) for name in ("vm1", "other"))
    guest.acquire()
    holder = Holder(leases)
    holder.ask(f"adopt {qemu.pid}")
    os.kill(holder.process.pid, signal.SIGSTOP)  # so that it can't be quicker than the other
    guest.release()
    other.acquire()
    other.release()
    os.kill(holder.process.pid, signal.SIGCONT)
    assert qemu.wait(60) == -signal.SIGKILL
    assert holder.process.wait(60) == 0


@pytest.mark.slow
def test_a_migration_that_is_called_off_ends_the_waiting(source: PaxosManager, leases: Path) -> None:
    guest = source.guest(Owner(VM, "vm1"), [Resource.disk(DISK)])
    guest.acquire()
    holder = Holder(leases)
    assert holder.ask("release") == "ok"
    assert holder.process.wait(60) == 0
    assert guest.held
    guest.release()
