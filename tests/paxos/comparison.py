"""Areas compared byte for byte, with only clocks and undefined bytes evened out.

What tells the time differs from run to run: timestamps of leaders and values, and the checksums over them, which
must be right before they are made anew. The request record's padding is whatever lay in memory (ondisk.md 2.6).
"""

from __future__ import annotations

from paxos.area import blocks
from paxos.geometry import Geometry
from paxos.records import Leader


def without_padding(area: bytes, request_at: int) -> bytes:
    """`area` with the padding of the request record at byte `request_at` as zeros."""
    return area[: request_at + 20] + bytes(4) + area[request_at + 24 :]


def without_clocks(area: bytes, geometry: Geometry) -> bytes:
    """A resource area with every time that is not 0 as 1."""
    even = bytearray(without_padding(area, geometry.request_offset))
    leader = Leader.unpack(area)
    assert leader.checksum == leader.computed_checksum
    even[:200] = leader.changed(
        timestamp=min(1, leader.timestamp), write_timestamp=min(1, leader.write_timestamp)
    ).pack()
    size = geometry.sector_size
    for host_id, block in blocks(area, geometry, geometry.max_hosts, "the area"):
        at = geometry.block_offset(host_id)
        even[at : at + size] = block.changed(inp3=min(1, block.inp3)).into(area[at : at + size])
    return bytes(even)
