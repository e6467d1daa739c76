"""Real libvirtd and QEMU guests with libvirt's lock manager off, and our hook in its place."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from tests.support.libvirt import ROOT, Libvirtd, LibvirtError, LibvirtGuest, Machine, lease_xml, machine, until
from tests.support.lockclient import is_locked, posix_lock
from tests.support.peers import SanlockDaemon, direct_init, zeroed_image

__all__ = ["machine"]
pytestmark = [pytest.mark.peers, pytest.mark.slow]

DEMO = "/var/lib/libvirt/images/demo.img"
SECOND = "/var/lib/libvirt/images/second.img"
FCNTL, PAXOS = "fcntl", "paxos"

_SETTINGS = {
    FCNTL: 'lock_manager = "fcntl"\n[settings]\nio_timeout = 1\nfire_timeout = 5\n',
    PAXOS: 'lock_manager = "paxos"\n[settings]\ndirectory = "/srv/leases"\nio_timeout = 1\nfire_timeout = 5\n',
}


@pytest.fixture(params=[FCNTL, PAXOS])
def lock_manager(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def libvirtd(machine: Machine, lock_manager: str) -> Libvirtd:
    for image in (DEMO, SECOND):
        machine.make_image(image)
    install_hook(machine, _SETTINGS[lock_manager])
    return machine.start_libvirtd("")


def install_hook(machine: Machine, config: str) -> None:
    script = machine.path("/etc/libvirt/hooks/qemu")
    script.parent.mkdir(parents=True)
    script.write_text(
        f'#!/bin/sh\necho "$@" >>/srv/calls\nexport PYTHONPATH={ROOT}\n'
        f'exec {sys.executable} -m leases.cli.main libvirt-hook --config /srv/hook.toml "$@"\n'
    )
    script.chmod(0o755)
    machine.path("/srv/hook.toml").write_text(config)


def expect_refused(guest: LibvirtGuest) -> None:
    """A hook's refusal has libvirt's error for failed hooks."""
    with pytest.raises(LibvirtError, match=r"held|locked"):
        guest.start()
    assert guest.state() == Libvirtd.SHUT_OFF


def test_a_second_guest_is_refused_until_the_first_is_gone(libvirtd: Libvirtd) -> None:
    first, second = libvirtd.guest("guestA", DEMO), libvirtd.guest("guestB", DEMO)
    first.start()
    expect_refused(second)
    assert first.state() == Libvirtd.RUNNING
    first.destroy()
    second.start()
    expect_refused(first)


def test_a_guest_that_crashes_gives_its_disk_back(libvirtd: Libvirtd) -> None:
    first, second = libvirtd.guest("guestA", DEMO), libvirtd.guest("guestB", DEMO)
    first.start()
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: first.state() == Libvirtd.SHUT_OFF, "libvirt's notice of the end")
    until(lambda: starts(second), "the second guest's start once the first is gone")


def starts(guest: LibvirtGuest) -> bool:
    try:
        guest.start()
    except LibvirtError:
        return False
    return True


def test_guests_on_other_disks_and_readers_are_not_in_the_way(libvirtd: Libvirtd) -> None:
    libvirtd.guest("guestA", DEMO).start()
    libvirtd.guest("guestB", SECOND).start()
    libvirtd.guest("guestC", DEMO, how="<readonly/>").start()


def test_a_failed_start_leaves_nothing_locked(libvirtd: Libvirtd) -> None:
    broken = libvirtd.guest("guestA", DEMO, emulator="/bin/false")
    with pytest.raises(LibvirtError):
        broken.start()
    libvirtd.guest("guestB", DEMO).start()


def test_a_guest_is_stopped_when_its_locks_are_lost(libvirtd: Libvirtd, lock_manager: str) -> None:
    guest = libvirtd.guest("guestA", DEMO)
    guest.start()
    if lock_manager == FCNTL:
        other = libvirtd.machine.path(DEMO + ".new")
        other.write_bytes(bytes(1 << 20))
        other.rename(libvirtd.machine.path(DEMO))
    else:
        with libvirtd.machine.path("/srv/leases/__LIBVIRT__DISKS__").open("r+b") as lockspace:
            lockspace.write(b"\xff" * (1 << 20))
    until(lambda: guest.state() == Libvirtd.SHUT_OFF, "the guest's end")


def test_locks_survive_a_restart_of_libvirtd(libvirtd: Libvirtd) -> None:
    first = libvirtd.guest("guestA", DEMO)
    first.start()
    libvirtd.restart()
    assert first.state() == Libvirtd.RUNNING
    expect_refused(libvirtd.guest("guestB", DEMO))


def holders(machine: Machine) -> list[int]:
    found = []
    for pid in machine.left_over():
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            if b"backends.libvirt_holder" in file.read():
                found.append(pid)
    return found


def test_a_guest_whose_holder_died_is_stopped(libvirtd: Libvirtd) -> None:
    """Nobody proves its locks any more, and nobody can call the guardian off."""
    guest = libvirtd.guest("guestA", DEMO)
    guest.start()
    (holder,) = holders(libvirtd.machine)
    os.kill(holder, signal.SIGKILL)
    until(lambda: guest.state() == Libvirtd.SHUT_OFF, "the guest's end")


def test_without_a_guardian_a_holder_that_died_is_replaced_when_libvirtd_is_restarted(machine: Machine) -> None:
    machine.make_image(DEMO)
    install_hook(machine, _SETTINGS[FCNTL] + 'watchdog = "none"\n')
    libvirtd = machine.start_libvirtd("")
    guest = libvirtd.guest("guestA", DEMO)
    guest.start()
    (holder,) = holders(machine)
    os.kill(holder, signal.SIGKILL)
    until(lambda: not is_locked(machine.path(DEMO)), "the holder's end")
    libvirtd.restart()
    until(lambda: is_locked(machine.path(DEMO)), "a new holder")
    expect_refused(libvirtd.guest("guestB", DEMO))
    assert guest.state() == Libvirtd.RUNNING


def test_a_failure_action_that_a_hook_cant_promise_is_refused(libvirtd: Libvirtd) -> None:
    with pytest.raises(LibvirtError, match="only poweroff"):
        libvirtd.guest("guestA", DEMO, on_lockfailure="pause").start()


@pytest.mark.parametrize("lock_manager", [FCNTL])
def test_a_real_virtlockd_elsewhere_is_respected(libvirtd: Libvirtd) -> None:
    """Its lock is the one below."""
    image = libvirtd.machine.path(DEMO)
    guest = libvirtd.guest("guestA", DEMO)
    stranger = posix_lock(image)
    expect_refused(guest)
    os.close(stranger)
    guest.start()
    assert is_locked(image)


def test_lease_elements_exclude_a_real_sanlock_host(machine: Machine, sanlock_daemon: SanlockDaemon) -> None:
    machine.make_image(DEMO)
    volume = zeroed_image(machine.directory / "volume", 2)
    direct_init(f"SAN:0:{volume}:0")
    direct_init(f"SAN:vm:{volume}:1048576")
    config = (
        f'lock_manager = "paxos"\n[settings]\nlockspaces = ["SAN:1:{volume}:0"]\nio_timeout = 1\nfire_timeout = 5\n'
    )
    install_hook(machine, config)
    libvirtd = machine.start_libvirtd("")
    guest = libvirtd.guest("guestA", DEMO, leases=lease_xml("SAN", "vm", volume, 1 << 20))
    sanlock_daemon.add_lockspace("SAN", 2, volume)
    other = sanlock_daemon.acquire_with(f"SAN:vm:{volume}:1048576")
    expect_refused(guest)
    other.release(f"SAN:vm:{volume}:1048576")
    guest.start()
    assert guest.state() == Libvirtd.RUNNING
