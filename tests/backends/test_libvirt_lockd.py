"""Real libvirtd and QEMU guests with libvirt's unmodified lockd plugin, on our virtlockd and on the real one."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from backends.fcntl import indirect_name
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
from tests.support.lockclient import LockClient, is_locked

__all__ = ["machine"]
pytestmark = [pytest.mark.peers, pytest.mark.slow]

DEMO = "/var/lib/libvirt/images/demo.img"
SECOND = "/var/lib/libvirt/images/second.img"
FILES = "/var/lib/libvirt/lockd/files"
DIRECT, INDIRECT = "direct", "indirect"


@pytest.fixture(params=[OURS, REAL])
def which(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[DIRECT, INDIRECT])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def virtlockd(machine: Machine, which: str) -> Daemon:
    for image in (DEMO, SECOND):
        machine.make_image(image)
    return machine.start_virtlockd(which)


@pytest.fixture
def libvirtd(machine: Machine, virtlockd: Daemon, mode: str) -> Libvirtd:
    settings = {"file_lockspace_dir": FILES} if mode == INDIRECT else {"auto_disk_leases": 1}
    return machine.start_libvirtd("lockd", **settings)


def place(libvirtd: Libvirtd, mode: str, disk: str = DEMO) -> Path:
    """The file that is locked for a disk."""
    return libvirtd.machine.path(disk if mode == DIRECT else f"{FILES}/{indirect_name(disk)}")


def locked(libvirtd: Libvirtd, mode: str, disk: str = DEMO) -> bool:
    file = place(libvirtd, mode, disk)
    return file.exists() and is_locked(file)


def expect_busy(guest: LibvirtGuest) -> None:
    """Refused with libvirt's own error for a lock held elsewhere."""
    with pytest.raises(LibvirtError, match="is locked") as refusal:
        guest.start()
    assert (refusal.value.code, refusal.value.domain) == (87, 51)
    assert guest.state() == Libvirtd.SHUT_OFF


def test_two_guests_on_one_disk_start_without_a_lock_manager(machine: Machine) -> None:
    """So it is the lock manager that refuses the second one in all the other tests."""
    machine.make_image(DEMO)
    libvirtd = machine.start_libvirtd("nop")
    for name in ("guestA", "guestB"):
        libvirtd.guest(name, DEMO).start()


def test_a_second_guest_is_refused_until_the_first_is_gone(libvirtd: Libvirtd, mode: str) -> None:
    first, second = libvirtd.guest("guestA", DEMO), libvirtd.guest("guestB", DEMO)
    first.start()
    assert locked(libvirtd, mode)
    expect_busy(second)
    assert first.state() == Libvirtd.RUNNING
    first.destroy()
    until(lambda: not locked(libvirtd, mode), "release after destroy")
    second.start()
    expect_busy(first)


def test_a_guest_that_crashes_releases_its_disk(libvirtd: Libvirtd, mode: str) -> None:
    first, second = libvirtd.guest("guestA", DEMO), libvirtd.guest("guestB", DEMO)
    first.start()
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: not locked(libvirtd, mode), "release after the crash")
    second.start()


def test_a_paused_guest_gives_its_disk_up(libvirtd: Libvirtd, mode: str) -> None:
    first, second = libvirtd.guest("guestA", DEMO), libvirtd.guest("guestB", DEMO)
    first.start()
    first.suspend()
    assert not locked(libvirtd, mode)
    second.start()
    with pytest.raises(LibvirtError) as refusal:
        first.resume()
    assert refusal.value.code == 87
    assert first.state() == Libvirtd.PAUSED
    second.destroy()
    until(lambda: not locked(libvirtd, mode), "release after destroy")
    first.resume()
    assert first.state() == Libvirtd.RUNNING
    expect_busy(second)


def test_disks_are_plugged_and_unplugged(libvirtd: Libvirtd, mode: str) -> None:
    first, second = libvirtd.guest("guestA", DEMO), libvirtd.guest("guestB", SECOND)
    second.start()
    first.start()
    with pytest.raises(LibvirtError) as refusal:
        first.attach(disk_xml(SECOND, "vdb"))
    assert refusal.value.code == 87
    second.destroy()
    until(lambda: not locked(libvirtd, mode, SECOND), "release after destroy")
    first.attach(disk_xml(SECOND, "vdb"))
    assert locked(libvirtd, mode, SECOND)
    expect_busy(second)


def test_shared_and_read_only_disks(libvirtd: Libvirtd, mode: str) -> None:
    shared = [libvirtd.guest(name, DEMO, how="<shareable/>") for name in ("guestA", "guestB")]
    for guest in shared:
        guest.start()
    expect_busy(libvirtd.guest("guestC", DEMO))
    reader = libvirtd.guest("guestD", DEMO, how="<readonly/>")
    reader.start()
    for guest in shared:
        guest.destroy()
    until(lambda: not locked(libvirtd, mode), "release after destroy")
    libvirtd.guest("guestC", DEMO).start()


@pytest.mark.parametrize("mode", [DIRECT])
def test_a_lease_element_is_a_file_in_a_lockspace(libvirtd: Libvirtd, virtlockd: Daemon) -> None:
    with LockClient(virtlockd.socket) as management:
        management.register()
        assert management.create_lockspace("/srv/lockd/area") is None
        assert management.create("/srv/lockd/area", "key") is None
    lease = lease_xml("area", "key", "/srv/lockd")
    first, second = (
        libvirtd.guest("guestA", DEMO, leases=lease),
        libvirtd.guest("guestB", SECOND, leases=lease),
    )
    first.start()
    expect_busy(second)
    first.destroy()
    until(lambda: not is_locked(libvirtd.machine.path("/srv/lockd/area/key")), "release after destroy")
    second.start()


@pytest.mark.parametrize("which", [OURS])
def test_our_daemon_stops_and_starts_under_running_guests(libvirtd: Libvirtd, mode: str, virtlockd: Daemon) -> None:
    first, second = libvirtd.guest("guestA", DEMO), libvirtd.guest("guestB", DEMO)
    first.start()
    virtlockd.terminate()
    assert locked(libvirtd, mode)
    virtlockd.restart()
    assert first.state() == Libvirtd.RUNNING
    expect_busy(second)
    first.suspend()
    first.resume()
    first.destroy()
    until(lambda: not locked(libvirtd, mode), "release after destroy")
    second.start()


@pytest.mark.parametrize("which", [REAL])
@pytest.mark.parametrize("mode", [DIRECT])
def test_the_real_daemon_kills_the_guests_when_it_is_stopped(libvirtd: Libvirtd, virtlockd: Daemon) -> None:
    first = libvirtd.guest("guestA", DEMO)
    first.start()
    virtlockd.terminate()
    until(lambda: first.state() == Libvirtd.SHUT_OFF, "the guest's end")


def test_locks_survive_a_restart_of_libvirtd(libvirtd: Libvirtd, mode: str) -> None:
    first = libvirtd.guest("guestA", DEMO)
    first.start()
    libvirtd.restart()
    assert first.state() == Libvirtd.RUNNING
    expect_busy(libvirtd.guest("guestB", DEMO))
    first.destroy()
    until(lambda: not locked(libvirtd, mode), "release after destroy")
