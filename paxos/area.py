"""A whole area at once: every host's delta lease of a lockspace, every host's block of a resource, in numpy.

An area has up to 2000 host slots, nearly all of them never used. So nothing here loops over slots: used
ones are found by columns, and only those become objects. What is read may be shorter than an area; slots
beyond its end are not there, whatever a record claims (ondisk.md 13, reference weaknesses, item 2).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from paxos.checksum import crc_rows
from paxos.errors import BlockChecksumError, BlockMisplaced, HostIdInvalid
from paxos.fields import COUNTER_LIMIT
from paxos.geometry import Geometry, Place
from paxos.records import (
    BITMAP_OFFSET,
    DBLOCK_COVERED,
    DBLOCK_LENGTH,
    DELTA_MAGIC,
    LEADER_COVERED,
    LEADER_LENGTH,
    MODE_LENGTH,
    MODE_OFFSET,
    NAME_LENGTH,
    SHARED,
    Block,
    Bytes,
    name_of,
)

#: One row per host, row h-1 for host h: the fields of a leader record, laid out as on disk (numpy takes the
#: NULs off the end of a name), then two of our own. `checksum_ok`: the stored checksum is right. `used`: the
#: slot has an owner, a generation or a timestamp, so somebody once took it.
DELTA_DTYPE: Final = np.dtype(
    [
        ("magic", "<u4"),
        ("version", "<u4"),
        ("flags", "<u4"),
        ("sector_size", "<u4"),
        ("num_hosts", "<u8"),
        ("max_hosts", "<u8"),
        ("owner_id", "<u8"),
        ("owner_generation", "<u8"),
        ("lver", "<u8"),
        ("space_name", "S48"),
        ("resource_name", "S48"),
        ("timestamp", "<u8"),
        ("unused1", "<u8"),
        ("checksum", "<u4"),
        ("unused2", "<u2"),
        ("io_timeout", "<u2"),
        ("write_id", "<u8"),
        ("write_generation", "<u8"),
        ("write_timestamp", "<u8"),
        ("checksum_ok", "?"),
        ("used", "?"),
    ],
    align=True,
)
_ROW = DELTA_DTYPE.itemsize
_SPACE_NAME = 56
assert DELTA_DTYPE["space_name"].itemsize == NAME_LENGTH and _ROW % 8 == 0

#: from this many used blocks on, one numpy pass over their checksums is quicker than a call for each
_MANY_BLOCKS: Final = 64


def decode_lockspace(view: Bytes, geometry: Geometry) -> NDArray[Any]:
    """The delta leases in the first `len(view)` bytes of a lockspace area: an array of DELTA_DTYPE, a copy.

    One row per host slot that `view` holds, at most max_hosts. Nothing is judged but the checksum.
    """
    slots = _sectors(view, geometry, first=0, count=geometry.max_hosts)
    rows = np.zeros(len(slots), DELTA_DTYPE)
    image = _image(rows)
    image[:, :LEADER_LENGTH] = slots[:, :LEADER_LENGTH]
    rows["used"] = (rows["owner_id"] | rows["owner_generation"] | rows["timestamp"]) != 0
    if len(rows):
        # most slots are as initialised, all alike: what holds for the last one holds for those
        unlike = _unlike_last(image)
        rows["checksum_ok"] = rows["checksum"][-1] == crc_rows(image[-1:, :LEADER_COVERED])[0]
        rows["checksum_ok"][unlike] = rows["checksum"][unlike] == crc_rows(image[unlike, :LEADER_COVERED])
    return rows


def _unlike_last(image: NDArray[np.uint8]) -> NDArray[np.intp]:
    """The rows that differ from the last one in the first 192 bytes: checksum and all it covers, and more."""
    # 24 words a row give 24 truth values, which are three words again: numpy is slow at reducing short rows
    differ = (image.view(np.uint64)[:, :24] != image.view(np.uint64)[-1, :24]).view(np.uint64)
    return np.flatnonzero(differ[:, 0] | differ[:, 1] | differ[:, 2])


def belonging(rows: NDArray[Any], lockspace: bytes) -> NDArray[np.bool_]:
    """Which rows of `decode_lockspace` are delta leases of this lockspace: magic and name (ondisk.md 4.6)."""
    wanted = name_of(lockspace)
    right: NDArray[np.bool_] = rows["space_name"] == wanted
    # numpy compares whole fields; a name may also end at a NUL that something follows
    odd = np.flatnonzero(~right)
    bounded = np.frombuffer((wanted + b"\0")[:NAME_LENGTH], np.uint8)
    right[odd] = (_image(rows)[odd, _SPACE_NAME : _SPACE_NAME + len(bounded)] == bounded).all(axis=1)
    right &= rows["magic"] == DELTA_MAGIC
    return right


def _image(rows: NDArray[Any]) -> NDArray[np.uint8]:
    """The bytes of rows of `decode_lockspace`, (rows, row size); no copy."""
    return rows.view(np.uint8).reshape(len(rows), _ROW)


def calling(view: Bytes, geometry: Geometry, host_id: int) -> NDArray[np.intp]:
    """The hosts whose bitmaps in a lockspace area call `host_id`, ascending. Raises HostIdInvalid."""
    if not 1 <= host_id <= geometry.max_hosts:
        raise HostIdInvalid(host_id=host_id, max_hosts=geometry.max_hosts)
    byte, bit = divmod(host_id - 1, 8)
    slots = _sectors(view, geometry, first=0, count=geometry.max_hosts)
    return np.flatnonzero(slots[:, BITMAP_OFFSET + byte] & (1 << bit)) + 1


def blocks(view: Bytes, geometry: Geometry, num_hosts: int, place: Place | str) -> list[tuple[int, Block]]:
    """Host id and block of every host of a resource area whose block has any byte set, ascending.

    Looks at hosts 1..num_hosts, as far as `view` and the geometry have them. Raises BlockChecksumError for
    the first one whose dblock is damaged, or was never counted so far: it may hide a vote, so no decision may pass
    over it.
    """
    slots = _sectors(view, geometry, first=2, count=min(num_hosts, geometry.max_hosts))
    used = np.flatnonzero(_any_set(slots))
    found = [(row + 1, Block.unpack(view, (row + 2) * geometry.sector_size)) for row in used.tolist()]
    if len(found) >= _MANY_BLOCKS:
        sums = crc_rows(slots[used, :DBLOCK_COVERED]).tolist()
        right = [block.checksum == s or block.unused for (_, block), s in zip(found, sums, strict=True)]
    else:
        right = [block.checksum_ok for _, block in found]
    if not all(right):
        raise BlockChecksumError(place=place, host_id=found[right.index(False)][0])
    for host_id, block in found:
        if max(block.mbal, block.lver) > COUNTER_LIMIT:
            raise BlockChecksumError(place=place, host_id=host_id)
        # Ballot numbers are host ids modulo the slots: another host's block here is a write that went astray.
        if block.mbal and block.mbal % geometry.max_hosts != host_id % geometry.max_hosts:
            raise BlockMisplaced(place=place, host_id=host_id, mbal=block.mbal)
    return found


def shared_hosts(view: Bytes, geometry: Geometry, num_hosts: int) -> list[tuple[int, int]]:
    """Host id and generation of every host whose mode block in a resource area says SHARED, ascending.

    Mode blocks have no checksum; whether the dblock beside one is damaged is not looked at.
    """
    slots = _sectors(view, geometry, first=2, count=min(num_hosts, geometry.max_hosts))
    modes = slots[:, MODE_OFFSET : MODE_OFFSET + MODE_LENGTH]
    rows = np.flatnonzero(modes[:, 0] & SHARED)
    generations = np.ascontiguousarray(modes[rows, 8:16]).view("<u8")[:, 0]
    return list(zip((rows + 1).tolist(), generations.tolist(), strict=True))


def _sectors(view: Bytes, geometry: Geometry, first: int, count: int) -> NDArray[np.uint8]:
    """Up to `count` sectors from sector `first` on, as far as `view` goes: (sectors, size), no copy."""
    size = geometry.sector_size
    count = max(0, min(count, len(view) // size - first))
    return np.frombuffer(view, np.uint8, count * size, first * size if count else 0).reshape(count, size)


def _any_set(slots: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """For each host block's sector, whether its dblock or mode block has a byte that is not zero.

    Column by column: numpy's own reduction along such short rows takes three times as long.
    """
    words = slots.view(np.uint64)
    together = words[:, 0].copy()
    for start, length in ((8, DBLOCK_LENGTH - 8), (MODE_OFFSET, MODE_LENGTH)):
        for column in range(start // 8, (start + length) // 8):
            np.bitwise_or(together, words[:, column], out=together)
    used: NDArray[np.bool_] = together != 0
    return used
