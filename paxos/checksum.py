"""CRC-32C as the format wants it: of one record, and of many records at once.

Polynomial 0x11EDC6F41, reflected, initial register 0xFFFFFFFE (not 0xFFFFFFFF), no final xor (ondisk.md 1.4).

One record goes through the `crc32c` package where it is installed, else through crcmod: both give the same
numbers, but crcmod built without its C extension takes 20 us instead of 0.3 for a leader record.
Many records go through numpy. It is imported where it is needed: the renewal path does without it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

POLYNOMIAL = 0x11EDC6F41
INITIAL = 0xFFFFFFFE
_REFLECTED = 0x82F63B78
_ALL_ONES = 0xFFFFFFFF

try:
    from crc32c import crc32c as _crc32c  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    import crcmod

    _crcmod = crcmod.mkCrcFun(POLYNOMIAL, initCrc=INITIAL, rev=True, xorOut=0)

    def crc(data: bytes | memoryview) -> int:
        """The checksum of `data`, a number of 32 bits."""
        return int(_crcmod(data))
else:

    def crc(data: bytes | memoryview) -> int:
        """The checksum of `data`, a number of 32 bits."""
        # the package follows the usual CRC-32C: both its value argument and its result are inverted registers
        return int(_crc32c(data, INITIAL ^ _ALL_ONES)) ^ _ALL_ONES


def crc_rows(rows: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """The checksums of n records of equal length: (n, length) bytes in, (n,) numbers out, as `crc` gives.

    A CRC is linear: it is the xor of what each byte would give alone at its place, and of what the initial
    register gives. So one table per byte position, one lookup per byte, no loop over rows or bytes.
    """
    import numpy as np

    length = rows.shape[1]
    tables, constant = _position_tables(length)
    places = rows + np.arange(0, 256 * length, 256, dtype=np.intp)
    crcs: NDArray[np.uint32] = np.bitwise_xor.reduce(tables.take(places), axis=1, initial=constant)
    return crcs


@lru_cache(maxsize=8)
def _position_tables(length: int) -> tuple[NDArray[np.uint32], np.uint32]:
    """What byte v at position p of `length` contributes, at [256 * p + v], and what the start value does."""
    import numpy as np

    step = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        step = np.where(step & 1, (step >> 1) ^ np.uint32(_REFLECTED), step >> 1)
    tables = np.empty((length, 256), np.uint32)
    contribution = step
    for position in reversed(range(length)):
        tables[position] = contribution
        contribution = (contribution >> 8) ^ step[contribution & 0xFF]
    return tables.reshape(-1), np.uint32(crc(bytes(length)))
