"""Buffers: page-aligned memory for direct I/O, carved from huge pages and used again and again.

Where the pages lie decides how fast 1 MiB is read: one 2 MiB page takes a third of the time of scattered 4
KiB pages. So memory comes in chunks of whole 2 MiB pages, private, prefaulted, and never inherited by a
child (a fork during direct I/O would otherwise let the bytes go to the wrong copy).

A buffer whose I/O is still in flight is simply not given back: the pool grows by what is parked.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress

PAGE = 4096
HUGE_PAGE = 2 << 20
#: up to this size buffers are carved from a chunk's bottom, larger ones from its top, so neither splits the
#: other
_SMALL = 64 << 10
_MADV_POPULATE_WRITE = 23


class Buffer:
    """`size` bytes at `address`: `memory` to write to, `view` to read from. `give_back` ends its use."""

    __slots__ = ("_home", "address", "memory", "size", "view")

    def __init__(self, memory: memoryview, address: int, home: list[Buffer]) -> None:
        self.memory = memory
        self.view = memory.toreadonly()
        self.address = address
        self.size = len(memory)
        self._home = home

    def give_back(self) -> None:
        """To the pool it came from. May be called from any thread."""
        self._home.append(self)


class Pool:
    """Buffers of one engine, by size class: powers of two from one page on.

    `take` is for one thread at a time; buffers may come back from any.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[Buffer]] = {}
        self._chunk = _Chunk(HUGE_PAGE)

    def take(self, length: int) -> Buffer:
        """A buffer of at least `length` bytes, its content undefined."""
        size = PAGE if length <= PAGE else 1 << (length - 1).bit_length()
        free = self._free.get(size)
        if free is None:
            free = self._free[size] = []
        return free.pop() if free else self._carve(size, free)

    def _carve(self, size: int, home: list[Buffer]) -> Buffer:
        part = self._chunk.carve(size)
        if part is None:
            self._chunk = _Chunk(max(size, HUGE_PAGE))
            part = self._chunk.carve(size)
            assert part is not None
        memory, address = part
        return Buffer(memory, address, home)


class _Chunk:
    """A run of whole huge pages, given away from both ends."""

    def __init__(self, size: int) -> None:
        mapping = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        base = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        start = -base % HUGE_PAGE
        with suppress(OSError):  # a kernel without huge pages is slower, not wrong
            mapping.madvise(mmap.MADV_HUGEPAGE, start, size)
        mapping.madvise(mmap.MADV_DONTFORK)
        self._memory = memoryview(mapping)[start : start + size]
        self._address = base + start
        self._bottom, self._top = 0, size
        try:
            mapping.madvise(_MADV_POPULATE_WRITE, start, size)
        except OSError:  # before Linux 5.14
            for page in range(0, size, PAGE):
                self._memory[page] = 0

    def carve(self, size: int) -> tuple[memoryview, int] | None:
        """`size` bytes and their address, or None when the chunk is used up."""
        if self._top - self._bottom < size:
            return None
        if size <= _SMALL:
            start = self._bottom
            self._bottom += size
        else:
            start = self._top = self._top - size
        return self._memory[start : start + size], self._address + start
