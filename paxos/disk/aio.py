"""Linux native asynchronous I/O (libaio's system calls, without libaio): the mechanism of choice.

    io_setup(n) -> context         io_submit(context, iocbs)       io_cancel(context, iocb)
    io_destroy(context)            io_getevents(context, min, max, events, timeout)

One context and its tables are allocated once; a transfer then costs one packed `iocb` of 64 bytes and two
system calls. The interpreter lock is free during each. `wake` is one more iocb: a poll of an eventfd.

Measured with bench/test_io_mechanisms.py (best case in us; ext4 on a virtio disk, Linux 6.18, 2 cores):

                       read 512   64 KiB   1 MiB   write 512   engine: read 512   CPU, 32 in flight
    preadv, no timeout       34       49     275          62                  -                   -
    this                     40       52     288          62                 47                   9
    io_uring                 40       56     286          68                 50                  13
    threads                  49       70     304          72                 60                  23

io_uring is no faster, is forbidden in many containers, and wants memory barriers that Python doesn't have. What it
has over this, that submitting never blocks, the limit of I/O in flight to one device gives as well.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress

from paxos.disk.buffers import Buffer

#: io_setup, io_destroy, io_submit, io_cancel, io_getevents
_GENERIC = (0, 1, 2, 3, 4)
_SYSTEM_CALLS = {
    "x86_64": (206, 207, 209, 210, 208),
    "aarch64": _GENERIC,
    "riscv64": _GENERIC,
    "loongarch64": _GENERIC,
    "ppc64le": (227, 228, 230, 231, 229),
    "s390x": (243, 244, 246, 247, 245),
}

#: data, key and rw_flags, opcode, reqprio, fd, address, length, offset, reserved, flags, resfd
_IOCB = struct.Struct("=QQHhIQQqQII")
_PREAD, _PWRITE, _POLL = 0, 1, 5
_POLLIN = 1
_EVENT_WORDS = 4  # data, address of the iocb, result, second result
_EVENTS_AT_ONCE = 64


class Aio:
    """One asynchronous I/O context. Raises OSError where the kernel forbids it or has no context left."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._closed = False
        self._wake_lock = threading.RLock()
        self._wake_fd = -1
        if platform.machine() not in _SYSTEM_CALLS:
            raise OSError(errno.ENOSYS, "system call numbers of this machine are not known")
        setup, destroy, submit, cancel, getevents = _SYSTEM_CALLS[platform.machine()]
        self._call = ctypes.CDLL(None, use_errno=True).syscall
        self._call.restype = ctypes.c_long
        self._destroy, self._cancel = ctypes.c_long(destroy), ctypes.c_long(cancel)
        self._submit, self._getevents = ctypes.c_long(submit), ctypes.c_long(getevents)

        context = ctypes.c_ulong(0)
        if self._call(ctypes.c_long(setup), ctypes.c_long(capacity + 1), ctypes.byref(context)) < 0:
            failure = ctypes.get_errno()
            raise OSError(failure, f"io_setup: {os.strerror(failure)}")
        self._context = context

        self._iocbs = ctypes.create_string_buffer(_IOCB.size * (capacity + 1))
        first = ctypes.addressof(self._iocbs)
        self._iocb_addresses = [first + _IOCB.size * number for number in range(capacity + 1)]
        queue = (ctypes.c_uint64 * (capacity + 1))()
        self._queue = memoryview(queue).cast("B").cast("Q")
        self._queue_address = ctypes.addressof(queue)
        self._queued = 0
        events = (ctypes.c_int64 * (_EVENT_WORDS * _EVENTS_AT_ONCE))()
        self._events = memoryview(events).cast("B").cast("q")
        timeout = (ctypes.c_int64 * 2)()
        self._timeout = memoryview(timeout).cast("B").cast("q")
        self._keep = (queue, events, timeout)
        # arguments that never change, made once
        self._one, self._many = ctypes.c_long(1), ctypes.c_long(_EVENTS_AT_ONCE)
        self._events_pointer = ctypes.c_void_p(ctypes.addressof(events))
        self._timeout_pointer = ctypes.c_void_p(ctypes.addressof(timeout))
        self._queue_pointer = ctypes.c_void_p(self._queue_address)

        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._watch_for_wake()

    def queue(self, number: int, fd: int, buffer: Buffer, length: int, offset: int, writing: bool) -> None:
        opcode = _PWRITE if writing else _PREAD
        _IOCB.pack_into(self._iocbs, number * 64, number, 0, opcode, 0, fd, buffer.address, length, offset, 0, 0, 0)
        self._queue[self._queued] = self._iocb_addresses[number]
        self._queued += 1

    def submit(self) -> Sequence[tuple[int, int]]:
        queued, self._queued = self._queued, 0
        if queued == 1:
            if self._call(self._submit, self._context, self._one, self._queue_pointer) == 1:
                return ()
        elif not queued:
            return ()
        return self._submit_each(queued)

    def _submit_each(self, queued: int) -> list[tuple[int, int]]:
        """The kernel stops at the first iocb that it does not take: note it, go on after it."""
        refused = []
        done = 0
        while done < queued:
            pointer = ctypes.c_void_p(self._queue_address + 8 * done)
            taken = self._call(self._submit, self._context, ctypes.c_long(queued - done), pointer)
            if taken > 0:
                done += taken
                continue
            number = (self._queue[done] - self._iocb_addresses[0]) // _IOCB.size
            refused.append((number, -(ctypes.get_errno() if taken < 0 else errno.EAGAIN)))
            done += 1
        return refused

    def wait(self, timeout: float) -> Sequence[tuple[int, int]]:
        seconds = int(timeout)
        self._timeout[0] = seconds
        self._timeout[1] = int((timeout - seconds) * 1e9)
        count = self._call(
            self._getevents, self._context, self._one, self._many, self._events_pointer, self._timeout_pointer
        )
        events = self._events
        if count == 1 and events[0] != self.capacity:
            return ((events[0], events[2]),)
        if count < 0:
            failure = ctypes.get_errno()
            if failure != errno.EINTR:
                raise OSError(failure, f"io_getevents: {os.strerror(failure)}")
            return ()
        ended = []
        for place in range(0, count * _EVENT_WORDS, _EVENT_WORDS):
            if events[place] == self.capacity:
                self._woken()
            else:
                ended.append((events[place], events[place + 2]))
        return ended

    def cancel(self, number: int) -> bool:
        """Disks refuse this (EINVAL); where it works the end comes as an event like any other."""
        result = ctypes.create_string_buffer(32)
        iocb = ctypes.c_void_p(self._iocb_addresses[number])
        done = self._call(self._cancel, self._context, iocb, result)
        return bool(done == 0 or ctypes.get_errno() == errno.EINPROGRESS)

    def wake(self) -> None:
        with self._wake_lock:
            if not self._closed:
                os.eventfd_write(self._wake_fd, 1)

    def _woken(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
        self._watch_for_wake()

    def _watch_for_wake(self) -> None:
        number = self.capacity
        _IOCB.pack_into(self._iocbs, number * 64, number, 0, _POLL, 0, self._wake_fd, _POLLIN, 0, 0, 0, 0, 0)
        pointers = ctypes.c_uint64(self._iocb_addresses[number])
        if self._call(self._submit, self._context, self._one, ctypes.byref(pointers)) != 1:
            failure = ctypes.get_errno()
            self.close()
            raise OSError(failure, f"io_submit of a poll: {os.strerror(failure)}")

    def close(self) -> None:
        with self._wake_lock:
            if self._closed:
                return
            self._closed = True
        self._call(self._destroy, self._context)
        os.close(self._wake_fd)
