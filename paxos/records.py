"""The records of a lease on disk, in one import; each has a module of its own.

    fields    names and versions           leader    who holds a lease, of both kinds
    block     one host in ballots          calls     request record, host bitmap
    initial   the first content of areas

All integers are little endian; offsets count from the start of the record's sector (ondisk.md section 2).
Decoding believes nothing: `unpack` checks only that there are enough bytes, `verify` says what is wrong
with them. Encoding is exact: what was unpacked packs to the same bytes, and `into` a sector leaves every
byte alone that is not the record's, so bytes that other programs put there survive.
"""

from paxos.block import (
    DBLOCK_COVERED,
    DBLOCK_LENGTH,
    EMPTY_BLOCK,
    MODE_LENGTH,
    MODE_OFFSET,
    RELEASED,
    SHARED,
    Block,
)
from paxos.calls import (
    BITMAP_LENGTH,
    BITMAP_OFFSET,
    REQUEST_MAGIC,
    REQUEST_VERSION,
    Request,
    bitmap_has,
    bitmap_hosts,
    bitmap_of,
)
from paxos.fields import (
    NAME_LENGTH,
    Bytes,
    name_of,
    pack_name,
    replace_name,
    same_name,
)
from paxos.initial import (
    fresh_lockspace,
    fresh_resource,
)
from paxos.leader import (
    CLEAR_MAGIC,
    DELTA_MAGIC,
    DELTA_VERSION,
    LEADER_COVERED,
    LEADER_LENGTH,
    PAXOS_MAGIC,
    PAXOS_VERSION,
    SHORT_HOLD,
    Leader,
    verify_delta,
    verify_header,
    verify_paxos,
)

__all__ = [
    "BITMAP_LENGTH",
    "BITMAP_OFFSET",
    "CLEAR_MAGIC",
    "DBLOCK_COVERED",
    "DBLOCK_LENGTH",
    "DELTA_MAGIC",
    "DELTA_VERSION",
    "EMPTY_BLOCK",
    "LEADER_COVERED",
    "LEADER_LENGTH",
    "MODE_LENGTH",
    "MODE_OFFSET",
    "NAME_LENGTH",
    "PAXOS_MAGIC",
    "PAXOS_VERSION",
    "RELEASED",
    "REQUEST_MAGIC",
    "REQUEST_VERSION",
    "SHARED",
    "SHORT_HOLD",
    "Block",
    "Bytes",
    "Leader",
    "Request",
    "bitmap_has",
    "bitmap_hosts",
    "bitmap_of",
    "fresh_lockspace",
    "fresh_resource",
    "name_of",
    "pack_name",
    "replace_name",
    "same_name",
    "verify_delta",
    "verify_header",
    "verify_paxos",
]
