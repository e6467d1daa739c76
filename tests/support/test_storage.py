"""The test disks themselves: each fails just the way it is told to, and is gone afterwards."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.storage import MIB, FaultyDisk, LateDisk, LoopDisk, PlainDisk

pytestmark = pytest.mark.storage

NOT_YET = 0.2


def direct_read(path: str, offset: int, length: int = 4096) -> bytes:
    buffer = mmap.mmap(-1, length)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        os.preadv(fd, [buffer], offset)
    finally:
        os.close(fd)
    return bytes(buffer)


def direct_write(path: str, offset: int, data: bytes) -> None:
    buffer = mmap.mmap(-1, len(data))
    buffer[:] = data
    fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_SYNC)
    try:
        os.pwritev(fd, [buffer], offset)
    finally:
        os.close(fd)


def in_thread(function: Callable[..., object], *arguments: object) -> Future[object]:
    pool = ThreadPoolExecutor(1)
    result = pool.submit(function, *arguments)
    pool.shutdown(wait=False)
    return result


def sector(text: str) -> bytes:
    return text.encode().ljust(4096, b"\0")


def test_a_plain_disk_has_no_holes(plain_disk: PlainDisk) -> None:
    assert os.stat(plain_disk.path).st_blocks * 512 >= plain_disk.size
    plain_disk.write(4096, b"abc")
    assert plain_disk.read(4095, 5) == b"\0abc\0"


def test_a_loop_disk_is_gone_after_use() -> None:
    with LoopDisk(4096, MIB) as disk:
        direct_write(disk.path, 4096, sector("x"))
        assert disk.read(4096, 2) == b"x\0"
        backing = Path("/sys/block", Path(disk.path).name, "loop/backing_file")
        assert backing.read_text().strip() == disk.image
    end = time.monotonic() + 30
    while backing.exists() and backing.read_text().strip().startswith(disk.image):
        assert time.monotonic() < end
    assert not disk.directory.exists()


def test_a_faulty_disk_fails_by_command(faulty_disk: FaultyDisk) -> None:
    for path in (faulty_disk.path, faulty_disk.files["a"]):
        direct_write(path, 0, sector("x"))
        faulty_disk.fail_reads()
        with pytest.raises(OSError) as failure:
            direct_read(path, 0)
        assert failure.value.errno == errno.EIO
        direct_write(path, 0, sector("y"))
        faulty_disk.fail_writes()
        faulty_disk.heal()
        assert direct_read(path, 0) == faulty_disk.read(0, 4096) == sector("y")


def test_one_path_of_a_faulty_disk_hangs_and_the_other_works() -> None:
    with FaultyDisk(paths=("a", "b"), sector_size=4096) as disk:
        disk.hang("a")
        hung = in_thread(direct_write, disk.devices["a"], 0, sector("late"))
        direct_write(disk.devices["b"], 4096, sector("b"))
        time.sleep(NOT_YET)
        assert not hung.done()
        assert direct_read(disk.devices["b"], 0) == sector("")
        disk.resume("a")
        hung.result(30)
        assert direct_read(disk.devices["b"], 0) == sector("late")


def test_a_hung_disk_can_be_closed_with_io_in_flight() -> None:
    disk = FaultyDisk()
    disk.hang()
    hung = in_thread(direct_read, disk.path, 0)
    time.sleep(NOT_YET)
    disk.close()
    hung.exception(30)


def test_a_late_disk_holds_just_the_write_it_is_told_to(late_disk: LateDisk) -> None:
    a, b = late_disk.devices["a"], late_disk.devices["b"]
    rule = late_disk.hold("a", offset=4096, length=4096, content={0: b"late", 8: b"!"}, skip=1)
    direct_write(a, 4096, sector("late    ! but skipped"))
    direct_write(a, 4096, sector("late    ? other content"))
    direct_write(a, 8192, sector("late    ! other place"))
    direct_write(b, 4096, sector("late    ! other path"))
    held = in_thread(direct_write, a, 4096, sector("late    ! held"))
    io = late_disk.wait_held(rule)
    assert (io.path, io.operation, io.offset, io.length, io.data) == (
        "a",
        "write",
        4096,
        4096,
        sector("late    ! held"),
    )
    direct_write(a, 4096, sector("late    ! one is enough"))
    assert direct_read(b, 4096) == sector("late    ! one is enough")
    assert not held.done()
    assert late_disk.release(rule) == 1
    held.result(30)
    assert direct_read(b, 4096) == late_disk.read(4096, 4096) == sector("late    ! held")
    assert late_disk.held() == []


def test_other_synchronous_writes_of_the_path_do_not_wait(late_disk: LateDisk) -> None:
    rule = late_disk.hold("a", offset=0, length=512)
    held = in_thread(direct_write, late_disk.path, 0, sector("held"))
    late_disk.wait_held(rule)
    for number in range(50):
        direct_write(late_disk.path, 4096, sector(f"{number}"))
    assert late_disk.held(rule)[0].age < 4.0
    late_disk.release()
    held.result(30)


def test_a_held_write_may_have_landed_already(late_disk: LateDisk) -> None:
    rule = late_disk.hold("a", landing="at once")
    held = in_thread(direct_write, late_disk.path, 0, sector("landed"))
    late_disk.wait_held(rule)
    assert late_disk.read(0, 4096) == sector("landed")
    direct_write(late_disk.devices["b"], 0, sector("later"))
    late_disk.release()
    held.result(30)
    assert late_disk.read(0, 4096) == sector("later")


def test_a_held_write_may_fail_in_the_end(late_disk: LateDisk) -> None:
    rule = late_disk.hold("a")
    held = in_thread(direct_write, late_disk.path, 0, sector("never"))
    late_disk.wait_held(rule)
    late_disk.release(rule, failure=errno.EIO)
    failure = held.exception(30)
    assert isinstance(failure, OSError) and failure.errno == errno.EIO
    assert late_disk.read(0, 4096) == sector("")


def test_reads_can_be_held_too_and_see_what_is_there_when_let_go(late_disk: LateDisk) -> None:
    rule = late_disk.hold("b", operation="read")
    held = in_thread(direct_read, late_disk.devices["b"], 0)
    late_disk.wait_held(rule)
    late_disk.write(0, sector("meanwhile"))
    late_disk.release(rule)
    assert held.result(30) == sector("meanwhile")


def test_all_of_a_path_can_be_held(late_disk: LateDisk) -> None:
    rule = late_disk.hold("a", count=100)
    held = [in_thread(direct_write, late_disk.path, 4096 * number, sector(f"{number}")) for number in range(20)]
    end = time.monotonic() + 30
    while len(late_disk.held(rule)) < 20:
        assert time.monotonic() < end
        time.sleep(0.01)
    direct_write(late_disk.devices["b"], 4096 * 50, sector("b"))
    assert late_disk.release(rule) == 20
    for number, write in enumerate(held):
        write.result(30)
        assert late_disk.read(4096 * number, 4096) == sector(f"{number}")


def test_a_large_write_is_whole(late_disk: LateDisk) -> None:
    data = os.urandom(4 * MIB)
    direct_write(late_disk.path, 4 * MIB, data)
    assert late_disk.read(4 * MIB, len(data)) == direct_read(late_disk.devices["b"], 4 * MIB, len(data)) == data


def test_a_late_disk_as_files(late_disk: LateDisk) -> None:
    rule = late_disk.hold("a")
    held = in_thread(direct_write, late_disk.files["a"], 0, sector("file"))
    late_disk.wait_held(rule)
    direct_write(late_disk.files["a"], 4096, sector("other"))
    assert direct_read(late_disk.files["b"], 0) == sector("")
    assert direct_read(late_disk.files["b"], 4096) == sector("other")
    late_disk.release()
    held.result(30)
    assert direct_read(late_disk.files["b"], 0) == sector("file")


def test_a_late_disk_can_be_closed_while_it_holds() -> None:
    disk = LateDisk()
    rule = disk.hold("a", count=5)
    held = [in_thread(direct_write, disk.path, 4096 * number, sector("x")) for number in range(5)]
    disk.wait_held(rule)
    disk.close()
    for write in held:
        write.exception(30)


def test_a_wrong_command_is_an_error_here(late_disk: LateDisk) -> None:
    with pytest.raises(ValueError, match="no path 'c'"):
        late_disk.hold("c")
    with pytest.raises(ValueError, match="beyond the end"):
        late_disk.write(late_disk.size, b"x")


def test_a_late_disk_does_not_outlive_a_killed_test() -> None:
    script = (
        "import time\nfrom tests.support.storage import LateDisk\n"
        "disk = LateDisk()\nprint(disk.directory, disk.path, flush=True)\ntime.sleep(600)"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=root, text=True) as process:
        assert process.stdout is not None
        directory, loop = process.stdout.readline().split()
        process.kill()
    end = time.monotonic() + 30
    backing = Path("/sys/block", Path(loop).name, "loop/backing_file")
    while backing.exists() and backing.read_text().startswith(directory):
        assert time.monotonic() < end
        time.sleep(0.01)
    for name in ("a", "b"):
        subprocess.run(["umount", "--lazy", f"{directory}/{name}"], check=True)
    subprocess.run(["rm", "-r", directory], check=True)
