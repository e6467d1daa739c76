"""fcntl under the keeper: locks that survive what others would lose them by, and what happens when they are lost."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from backends.fcntl import FcntlManager, indirect_name, lock_place
from backends.lockfile import LockFile, LockGone
from backends.patience import NoAnswer, within
from leases.manager import Access, FailureAction, GuestLocks, OnFailure, Owner, Resource, ResourceBusy
from paxos.errors import CannotOpen, InvalidUse
from tests.support.libvirt import until
from tests.support.lockclient import is_locked, posix_lock
from tests.support.peers import images
from tests.support.storage import FaultyDisk

__all__ = ["images"]

VM = UUID(int=1)
#: seconds; real time, under load
PATIENCE = 60.0


@pytest.fixture
def disk(images: Path) -> Path:
    path = images / "disk.img"
    path.write_bytes(bytes(8192))
    return path


def locked_file(path: Path, *, shared: bool = False, autocreate: bool = False) -> LockFile:
    return LockFile.take("disk", str(path), shared=shared, autocreate=autocreate)


# ------------------------------------------------------------------------------------------------------ one lock


def test_an_unrelated_close_in_the_same_process_loses_nothing(disk: Path) -> None:
    lock = locked_file(disk)
    os.close(os.open(disk, os.O_RDWR))
    with pytest.raises(BlockingIOError):
        posix_lock(disk)
    lock.prove()
    lock.give_back()


def test_a_posix_lock_is_lost_by_it() -> None:
    """Which is why virtlockd must not open an image twice."""
    code = (
        "import fcntl, os, subprocess, sys, tempfile\n"
        "path = tempfile.mkstemp()[1]\n"
        "fd = os.open(path, os.O_RDWR)\n"
        "fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1)\n"
        "os.close(os.open(path, os.O_RDWR))\n"
        "other = 'import fcntl, os; fcntl.lockf(os.open(%r, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB, 1)' % path\n"
        "code = subprocess.run([sys.executable, '-c', other]).returncode\n"
        "os.unlink(path)\n"
        "sys.exit(code)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_lock_is_handed_on_with_its_descriptor(disk: Path) -> None:
    lock = locked_file(disk)
    heir = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=[lock.fd]
    )
    os.close(lock.fd)
    assert is_locked(disk)
    heir.communicate(timeout=60)
    assert not is_locked(disk)


def test_exclusive_and_shared_locks_conflict_as_they_must(disk: Path) -> None:
    shared = [locked_file(disk, shared=True) for _ in range(2)]
    with pytest.raises(ResourceBusy):
        locked_file(disk)
    for lock in shared:
        lock.prove()
        lock.give_back()
    exclusive = locked_file(disk)
    with pytest.raises(ResourceBusy):
        locked_file(disk, shared=True)
    exclusive.give_back()


def test_only_byte_0_is_locked(disk: Path) -> None:
    lock = locked_file(disk)
    fd = os.open(disk, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, b"\1\0\0\0\0\0\0\0" + (1).to_bytes(8, "little") + bytes(16))
    os.close(fd)
    lock.give_back()


def test_a_file_made_for_the_lock_goes_with_it_unless_it_is_shared(images: Path) -> None:
    path = images / "made"
    one, two = (locked_file(path, shared=True, autocreate=True) for _ in range(2))
    one.give_back()
    assert path.exists()
    two.give_back()
    assert not path.exists()


def test_a_file_that_somebody_put_in_the_place_of_ours_stays(images: Path) -> None:
    path = images / "made"
    lock = locked_file(path, autocreate=True)
    path.unlink()
    path.touch()
    lock.give_back()
    assert path.exists()


def test_a_missing_image_is_not_made(images: Path) -> None:
    with pytest.raises(CannotOpen, match="No such file"):
        locked_file(images / "none")
    assert not list(images.iterdir())


# ---------------------------------------------------------------------------------------------------- its proof


def test_a_lock_on_a_file_that_was_replaced_is_lost(disk: Path) -> None:
    lock = locked_file(disk)
    disk.rename(disk.with_suffix(".old"))
    with pytest.raises(LockGone, match="the file is gone"):
        lock.prove()
    disk.write_bytes(bytes(8192))
    with pytest.raises(LockGone, match="another file"):
        lock.prove()
    lock.give_back()


@pytest.mark.parametrize("shared", [False, True])
def test_a_lock_that_is_not_there_is_lost(disk: Path, shared: bool) -> None:
    lock = locked_file(disk, shared=shared)
    fcntl.fcntl(lock.fd, fcntl.F_OFD_SETLK, _unlock())
    with pytest.raises(LockGone, match="nobody has it"):
        lock.prove()
    lock.give_back()


def test_a_lock_that_somebody_else_has_is_lost(disk: Path) -> None:
    lock = locked_file(disk)
    fcntl.fcntl(lock.fd, fcntl.F_OFD_SETLK, _unlock())
    other = locked_file(disk)
    with pytest.raises(LockGone, match="somebody else"):
        lock.prove()
    other.give_back()
    lock.give_back()


def test_a_shared_lock_is_not_taken_for_that_of_others(disk: Path) -> None:
    lock, other = locked_file(disk, shared=True), locked_file(disk, shared=True)
    fcntl.fcntl(lock.fd, fcntl.F_OFD_SETLK, _unlock())
    with pytest.raises(LockGone, match="only others"):
        lock.prove()
    other.prove()
    other.give_back()
    lock.give_back()


def _unlock() -> bytes:
    return fcntl.F_UNLCK.to_bytes(2, "little") + bytes(14) + (1).to_bytes(8, "little") + bytes(8)


def test_what_does_not_answer_in_time_is_given_up_and_cleaned_up_late() -> None:
    answer, cleaned = threading.Event(), threading.Event()
    with pytest.raises(NoAnswer, match="/server does not answer"):
        within(0.01, "lock", "/server", answer.wait, late=lambda _result: cleaned.set())
    answer.set()
    assert cleaned.wait(PATIENCE)


# --------------------------------------------------------------------------------------------------- the places


def test_places_are_those_of_virtlockd() -> None:
    demo = Resource.disk("/var/lib/libvirt/images/demo.img")
    name = "6f716e8c06fc109acd342e3c129a17ccf3c473c1c76363b543a1cbb55d1cd778"  # as the real plugin was seen to name it
    assert indirect_name(demo.name) == name
    assert lock_place(demo, None) == (demo.name, False)
    assert lock_place(demo, "/lockspace") == (f"/lockspace/{name}", True)
    assert lock_place(Resource.lease("area", "key", "/srv"), "/lockspace") == ("/srv/area/key", False)


@pytest.mark.parametrize(
    "lease",
    [
        Resource.lease("area", "key", "/srv", 512),
        Resource.lease("area", "../key", "/srv"),
        Resource.lease("..", "key", "/srv"),
        Resource.lease("", "key", "/srv"),
    ],
)
def test_a_lease_that_cant_be_a_file_is_refused(lease: Resource) -> None:
    with pytest.raises(InvalidUse):
        lock_place(lease, None)


# ---------------------------------------------------------------------------------------------- under the keeper


@pytest.fixture
def manager() -> Iterator[FcntlManager]:
    with FcntlManager(io_timeout=1, fire_timeout=5) as manager:
        yield manager


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"]) as process:
        yield process
        process.kill()


def replace_file(path: Path) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(bytes(8192))
    other.rename(path)


def guest_of(manager: FcntlManager, path: str | Path, pid: int, on_failure: OnFailure | None = None) -> GuestLocks:
    return manager.guest(Owner(VM, "vm1", pid), [Resource.disk(str(path))], on_failure)


@pytest.mark.slow
def test_the_program_of_a_failure_action_is_run(
    manager: FcntlManager, disk: Path, images: Path, process: subprocess.Popen[bytes]
) -> None:
    word = images / "word"
    on_failure = OnFailure(FailureAction.PAUSE, ("/bin/sh", "-c", f"echo paused > {word}; kill -STOP {process.pid}"))
    with guest_of(manager, disk, process.pid, on_failure) as guest:
        guest.acquire()
        replace_file(disk)
        until(word.exists, "the program's run")
        assert guest.lost.wait(PATIENCE)
        process.wait(PATIENCE)  # it did not give its locks up, so it is killed in the end


@pytest.mark.slow
def test_with_ignore_the_guest_lives_on_and_the_loss_is_told(
    manager: FcntlManager, disk: Path, process: subprocess.Popen[bytes]
) -> None:
    with guest_of(manager, disk, process.pid, OnFailure(FailureAction.IGNORE)) as guest:
        guest.acquire()
        replace_file(disk)
        assert guest.lost.wait(PATIENCE)
        assert isinstance(guest.lost.reason, LockGone)
        assert process.poll() is None


def test_pausing_needs_a_program(manager: FcntlManager) -> None:
    with pytest.raises(InvalidUse, match="program"):
        manager.guest(Owner(VM, "vm1"), [], OnFailure(FailureAction.PAUSE))


@pytest.mark.slow
def test_this_process_as_the_guest_is_told_and_has_to_answer(manager: FcntlManager, disk: Path) -> None:
    with guest_of(manager, disk, 0) as guest:
        guest.acquire()
        replace_file(disk)
        assert guest.lost.wait(PATIENCE)
        guest.lost.acknowledge()


@pytest.mark.slow
@pytest.mark.storage
@pytest.mark.parametrize("trouble", ["hangs", "fails"])
def test_a_guest_is_stopped_when_the_file_system_does_not_answer(
    manager: FcntlManager, process: subprocess.Popen[bytes], trouble: str
) -> None:
    with FaultyDisk(1 << 20) as faulty:
        guest = guest_of(manager, faulty.files["a"], process.pid)
        guest.acquire()
        if trouble == "hangs":
            faulty.hang()
        else:
            faulty.fail_reads()
        process.wait(PATIENCE)
        assert guest.lost.wait(PATIENCE)  # the watchdog may have been quicker
        faulty.resume()
        faulty.heal()
        guest.release()


@pytest.mark.slow
@pytest.mark.storage
def test_a_file_system_that_hangs_for_a_moment_costs_nothing(
    manager: FcntlManager, process: subprocess.Popen[bytes]
) -> None:
    with FaultyDisk(1 << 20) as faulty, guest_of(manager, faulty.files["a"], process.pid) as guest:
        guest.acquire()
        faulty.hang()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(4)
        faulty.resume()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(10)
        assert not guest.lost.is_set()


@pytest.mark.slow
@pytest.mark.storage
def test_one_guest_s_dead_file_system_is_not_another_s(
    manager: FcntlManager, disk: Path, process: subprocess.Popen[bytes]
) -> None:
    with FaultyDisk(1 << 20) as faulty, guest_of(manager, disk, 0) as other:
        guest = guest_of(manager, faulty.files["a"], process.pid)
        guest.acquire()
        other.acquire()
        faulty.hang()
        process.wait(PATIENCE)
        assert not other.lost.is_set()
        other.release()
        faulty.resume()
        guest.release()


@pytest.mark.slow
@pytest.mark.storage
def test_taking_a_lock_on_a_dead_file_system_does_not_wait_for_ever(manager: FcntlManager) -> None:
    with FaultyDisk(1 << 20) as faulty:
        faulty.hang()
        guest = guest_of(manager, faulty.files["a"], 0)
        with pytest.raises(NoAnswer):
            guest.acquire()
        faulty.resume()
        until(lambda: not is_locked(Path(faulty.files["a"])), "the late lock's end")


def test_an_unshared_directory_is_made_private(images: Path) -> None:
    directory = images / "a" / "b"
    with (
        FcntlManager(str(directory), io_timeout=5, watchdog="none") as manager,
        manager.guest(Owner(VM, "vm1"), [Resource.disk("/d", Access.SHARED)]) as guest,
    ):
        guest.acquire()
        assert directory.stat().st_mode & 0o777 == 0o700
