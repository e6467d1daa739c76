"""Devices: what can be opened, what is known of it, and that one table opens each once."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from paxos.disk.device import FILE_SECTOR_SIZE, Device, Devices
from paxos.errors import CannotOpen
from tests.support.storage import FaultyDisk, LoopDisk, PlainDisk


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_a_regular_file_counts_as_sectors_of_512_bytes(plain_disk: PlainDisk) -> None:
    device = Device.open(plain_disk.path)
    assert (device.sector_size, device.size) == (FILE_SECTOR_SIZE, plain_disk.size)
    assert not device.is_block


@pytest.mark.storage
def test_a_block_device_says_its_sectors_and_size(loop_disk: LoopDisk) -> None:
    device = Device.open(loop_disk.path)
    assert (device.sector_size, device.size) == (loop_disk.sector_size, loop_disk.size)
    assert device.is_block


def test_it_is_opened_for_direct_synchronous_io(plain_disk: PlainDisk) -> None:
    device = Device.open(plain_disk.path)
    flags = Path("/proc/self/fdinfo", str(device.fd)).read_text()
    bits = int(flags.split("flags:")[1].split()[0], 8)
    assert bits & os.O_DIRECT and bits & os.O_SYNC == os.O_SYNC and bits & os.O_ACCMODE == os.O_RDWR


def test_a_table_may_be_for_reading_only(plain_disk: PlainDisk) -> None:
    os.chmod(plain_disk.path, 0o400)
    device = Devices(read_only=True).open(plain_disk.path, 10.0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(device.fd, bytes(512), 0)


@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [
        ("/nowhere/disk", errno.ENOENT, "No such file"),
        ("/var/tmp", errno.ENODEV, "neither a block device nor a regular file"),
        ("/dev/null", errno.ENODEV, "neither a block device nor a regular file"),
    ],
)
def test_what_is_no_disk_cannot_be_opened(path: str, code: int, reason: str) -> None:
    with pytest.raises(CannotOpen, match=reason) as failure:
        Devices().open(path, 10.0)
    assert failure.value.errno == code
    assert failure.value.disk == path


def test_a_path_that_could_not_be_opened_is_tried_again(tmp_path: Path) -> None:
    devices = Devices()
    path = tmp_path / "disk"
    with pytest.raises(CannotOpen):
        devices.open(str(path), 10.0)
    path.write_bytes(bytes(4096))
    assert devices.open(str(path), 10.0).size == 4096


def test_threads_that_share_a_table_share_the_device(plain_disk: PlainDisk) -> None:
    devices = Devices()
    found: list[Device] = []
    threads = [threading.Thread(target=lambda: found.append(devices.open(plain_disk.path, 10.0))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_a_forgotten_device_is_closed_when_its_last_user_is_gone(plain_disk: PlainDisk) -> None:
    devices = Devices()
    user = devices.open(plain_disk.path, 10.0)
    fd = user.fd
    devices.forget(plain_disk.path)
    assert devices.get(plain_disk.path) is None
    assert is_open(fd)
    del user
    assert not is_open(fd)


@pytest.mark.storage
def test_opening_a_hung_disk_takes_no_longer_than_its_timeout_and_succeeds_later(
    faulty_disk: FaultyDisk,
) -> None:
    file = faulty_disk.files["a"]
    devices = Devices()
    faulty_disk.hang("a")
    with pytest.raises(CannotOpen) as failure:
        devices.open(file, 0.2)
    assert failure.value.errno == errno.ETIMEDOUT
    faulty_disk.resume()
    assert devices.open(file, 30.0).size == faulty_disk.size
