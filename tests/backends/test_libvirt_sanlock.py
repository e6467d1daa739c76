"""Real libvirtd and QEMU guests with libvirt's unmodified sanlock plugin, on our daemon and on the real one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from backends.paxos import LOCKSPACE, automatic_name
from leases.client import Client
from paxos.geometry import MIB
from tests.support.libvirt import (
    OURS,
    REAL,
    Daemon,
    Libvirtd,
    LibvirtError,
    LibvirtGuest,
    Machine,
    disk_xml,
    lease_xml,
    machine,
    until,
)
from tests.support.peers import direct_init
from tests.support.storage import FaultyDisk

__all__ = ["machine"]
pytestmark = [pytest.mark.peers, pytest.mark.slow]

DEMO = "/var/lib/libvirt/images/demo.img"
SECOND = "/var/lib/libvirt/images/second.img"
LEASES = "/srv/leases"
#: libvirt's own error for a lease that somebody else on this host has
BUSY_HERE = (38, "File exists")


@pytest.fixture(params=[OURS, REAL])
def which(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def daemon(machine: Machine, which: str) -> Daemon:
    for image in (DEMO, SECOND):
        machine.make_image(image)
    machine.path(LEASES).mkdir()
    return machine.start_sanlock(which)


@pytest.fixture
def automatic(machine: Machine, daemon: Daemon) -> Libvirtd:
    """libvirt makes the lockspace and a lease for each disk."""
    return machine.start_libvirtd("sanlock", auto_disk_leases=1, disk_lease_dir=LEASES, host_id=1, io_timeout=1)


def expect_busy(guest: LibvirtGuest) -> None:
    """Refused with the error that libvirt has for it."""
    with pytest.raises(LibvirtError) as refusal:
        guest.start()
    assert refusal.value.code == BUSY_HERE[0]
    assert BUSY_HERE[1] in refusal.value.message
    assert guest.state() == Libvirtd.SHUT_OFF


# -------------------------------------------------------------------------------------------------- automatic mode


def test_the_automatic_lockspace_is_made_and_joined(automatic: Libvirtd, daemon: Daemon) -> None:
    assert automatic.machine.path(f"{LEASES}/{LOCKSPACE}").stat().st_size == MIB
    spaces = Client(str(daemon.socket), 30.0).lockspaces()
    assert [(space.name.rstrip(b"\0"), space.host_id) for space in spaces] == [(LOCKSPACE.encode(), 1)]


def test_a_second_guest_is_refused_until_the_first_is_gone(automatic: Libvirtd) -> None:
    first, second = automatic.guest("guestA", DEMO), automatic.guest("guestB", DEMO)
    first.start()
    assert automatic.machine.path(f"{LEASES}/{automatic_name(DEMO)}").stat().st_size == MIB
    expect_busy(second)
    assert first.state() == Libvirtd.RUNNING
    first.destroy()
    until(lambda: starts(second), "the second guest's start once the first is gone")
    expect_busy(first)


def starts(guest: LibvirtGuest) -> bool:
    """The lease is released within about a second after the guest's end."""
    try:
        guest.start()
    except LibvirtError as error:
        assert error.code == BUSY_HERE[0]
        return False
    return True


def test_a_guest_that_crashes_releases_its_lease(automatic: Libvirtd) -> None:
    first, second = automatic.guest("guestA", DEMO), automatic.guest("guestB", DEMO)
    first.start()
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: starts(second), "the second guest's start once the first is gone")


def test_a_paused_guest_gives_its_lease_up(automatic: Libvirtd) -> None:
    first, second = automatic.guest("guestA", DEMO), automatic.guest("guestB", DEMO)
    first.start()
    first.suspend()
    second.start()
    with pytest.raises(LibvirtError, match=BUSY_HERE[1]):
        first.resume()
    assert first.state() == Libvirtd.PAUSED
    second.destroy()
    until(lambda: resumes(first), "the first guest's resume once the second is gone")
    assert first.state() == Libvirtd.RUNNING
    expect_busy(second)


def resumes(guest: LibvirtGuest) -> bool:
    try:
        guest.resume()
    except LibvirtError as error:
        assert error.code == BUSY_HERE[0]
        return False
    return True


def test_disks_are_plugged_and_unplugged(automatic: Libvirtd) -> None:
    first, second = automatic.guest("guestA", DEMO), automatic.guest("guestB", SECOND)
    first.start()
    second.start()
    with pytest.raises(LibvirtError, match=BUSY_HERE[1]):
        first.attach(disk_xml(SECOND, "vdb"))
    second.destroy()
    until(lambda: plugs(first), "the disk's plugging once the second guest is gone")
    expect_busy(second)


def plugs(guest: LibvirtGuest) -> bool:
    try:
        guest.attach(disk_xml(SECOND, "vdb"))
    except LibvirtError as error:
        assert error.code == BUSY_HERE[0]
        return False
    return True


def test_shared_and_read_only_disks(automatic: Libvirtd) -> None:
    for name in ("guestA", "guestB"):
        automatic.guest(name, DEMO, how="<shareable/>").start()
    expect_busy(automatic.guest("guestC", DEMO))
    automatic.guest("guestD", DEMO, how="<readonly/>").start()


def test_a_failure_action_that_the_plugin_does_not_know_is_refused(automatic: Libvirtd) -> None:
    with pytest.raises(LibvirtError, match="not supported"):
        automatic.guest("guestA", DEMO, on_lockfailure="restart").start()


def test_leases_survive_a_restart_of_libvirtd(automatic: Libvirtd) -> None:
    first = automatic.guest("guestA", DEMO)
    first.start()
    automatic.restart()
    assert first.state() == Libvirtd.RUNNING
    expect_busy(automatic.guest("guestB", DEMO))


# ------------------------------------------------------------------------------- manual mode, and a disk that fails


@pytest.fixture
def san() -> Iterator[FaultyDisk]:
    """A volume with a lockspace and one lease that a management application laid out."""
    with FaultyDisk(4 * MIB) as disk:
        direct_init(f"SAN:0:{disk.path}:0")
        direct_init(f"SAN:vm:{disk.path}:{MIB}")
        yield disk


@pytest.fixture
def manual(san: FaultyDisk, machine: Machine, daemon: Daemon) -> Libvirtd:
    Client(str(daemon.socket), 60.0).add_lockspace(f"SAN:1:{san.path}:0", io_timeout=1)
    return machine.start_libvirtd("sanlock", auto_disk_leases=0, require_lease_for_disks=1)


@pytest.fixture
def lease(san: FaultyDisk) -> str:
    return lease_xml("SAN", "vm", san.path, MIB)


@pytest.mark.storage
def test_a_second_guest_on_a_lease_is_refused_until_the_first_is_gone(manual: Libvirtd, lease: str) -> None:
    first, second = manual.guest("guestA", DEMO, leases=lease), manual.guest("guestB", SECOND, leases=lease)
    first.start()
    expect_busy(second)
    first.destroy()
    until(lambda: starts(second), "the second guest's start once the first is gone")


@pytest.mark.storage
def test_a_writer_without_a_lease_is_refused(manual: Libvirtd) -> None:
    with pytest.raises(LibvirtError, match="no leases specified"):
        manual.guest("guestA", DEMO).start()


@pytest.mark.storage
@pytest.mark.parametrize(
    ("action", "end"), [("", Libvirtd.SHUT_OFF), ("poweroff", Libvirtd.SHUT_OFF), ("pause", Libvirtd.PAUSED)]
)
def test_a_guest_is_stopped_as_configured_when_the_disk_fails(
    manual: Libvirtd, san: FaultyDisk, lease: str, action: str, end: int
) -> None:
    guest = manual.guest("guestA", DEMO, leases=lease, on_lockfailure=action)
    guest.start()
    assert guest.state() == Libvirtd.RUNNING
    san.fail_reads()
    san.fail_writes()
    until(lambda: guest.state() == end, f"the guest's state {end}")
