"""io_uring, as little of it as it takes to measure it beside the mechanisms that leasehold has."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Sequence

from paxos.disk.buffers import Buffer

_SETUP, _ENTER = 425, 426  # the same on every machine
_OFF_SQ_RING, _OFF_CQ_RING, _OFF_SQES = 0, 0x8000000, 0x10000000
_READ, _WRITE = 22, 23
_GETEVENTS, _EXT_ARG = 1 << 0, 1 << 3

_PARAMS = struct.Struct("=10I10I10I")  # sizes and features, then the offsets of the two rings
_SQE = struct.Struct("=BBHiQQIIQ24x")  # opcode, flags, priority, fd, offset, address, length, flags, user data
_CQE = struct.Struct("=QiI")  # user data, result, flags


class IoUring:
    """One ring with the interface of `paxos.disk.mechanism.Mechanism`, without `wake` and `cancel`."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        params = ctypes.create_string_buffer(_PARAMS.size)
        self._fd = self._call(_SETUP, capacity, params)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "io_uring_setup")
        entries, completions, *rest = _PARAMS.unpack(params.raw)
        submission, completion = rest[8:18], rest[18:28]
        self._sq = mmap.mmap(self._fd, submission[6] + 4 * entries, offset=_OFF_SQ_RING)
        self._cq = mmap.mmap(self._fd, completion[5] + 16 * completions, offset=_OFF_CQ_RING)
        self._sqes = mmap.mmap(self._fd, _SQE.size * entries, offset=_OFF_SQES)
        sq, cq = memoryview(self._sq).cast("I"), memoryview(self._cq).cast("I")
        self._sq_words, self._cq_words = sq, cq
        self._sq_tail, self._sq_mask = submission[1] // 4, sq[submission[2] // 4]
        self._array = submission[6] // 4
        self._cq_head, self._cq_tail = completion[0] // 4, completion[1] // 4
        self._cq_mask, self._cqes = cq[completion[2] // 4], completion[5]
        self._queued = 0
        self._timeout = (ctypes.c_int64 * 2)()
        self._argument = ctypes.create_string_buffer(struct.pack("=QIIQ", 0, 0, 0, ctypes.addressof(self._timeout)))

    def queue(self, number: int, fd: int, buffer: Buffer, length: int, offset: int, writing: bool) -> None:
        opcode = _WRITE if writing else _READ
        _SQE.pack_into(self._sqes, number * _SQE.size, opcode, 0, 0, fd, offset, buffer.address, length, 0, number)
        tail = self._sq_words[self._sq_tail]
        self._sq_words[self._array + (tail & self._sq_mask)] = number
        self._sq_words[self._sq_tail] = tail + 1
        self._queued += 1

    def submit(self) -> Sequence[tuple[int, int]]:
        """Only counts: `wait` submits and waits in one system call, which is what io_uring is good at."""
        return ()

    def wait(self, timeout: float) -> Sequence[tuple[int, int]]:
        self._timeout[0], self._timeout[1] = int(timeout), int(timeout % 1 * 1e9)
        queued, self._queued = self._queued, 0
        done = self._call(
            _ENTER, self._fd, queued, 1, _GETEVENTS | _EXT_ARG, self._argument, ctypes.c_size_t(len(self._argument) - 1)
        )
        if done < 0 and ctypes.get_errno() not in (errno.ETIME, errno.EINTR):
            raise OSError(ctypes.get_errno(), "io_uring_enter")
        words = self._cq_words
        head, tail = words[self._cq_head], words[self._cq_tail]
        ended = []
        while head != tail:
            number, moved, _ = _CQE.unpack_from(self._cq, self._cqes + (head & self._cq_mask) * _CQE.size)
            ended.append((number, moved))
            head += 1
        words[self._cq_head] = head
        return ended

    def cancel(self, number: int) -> bool:
        return False

    def wake(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        os.close(self._fd)


def available() -> bool:
    """Whether the kernel lets us."""
    try:
        IoUring(1).close()
    except OSError:
        return False
    return True
