"""leasehold sanlock direct: formats, reads and dumps storage without a daemon, and prints as the reference does."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from leases.cli.sanlock import Arguments
from leases.cli.sanlock_ask import entry, geometry, lockspace, print_entry, resources
from leases.daemon import statestring
from leases.daemon.wire import Disk, Index, Resource
from leases.daemon.wire import IndexEntry as WireEntry
from paxos import index
from paxos.area import shared_hosts
from paxos.disk.device import Device, Devices
from paxos.disk.engine import Engine
from paxos.errors import InvalidUse, LeaseholdError
from paxos.geometry import PROBE_LENGTH, SECTOR_FLAGS, Geometry, Place
from paxos.index_records import INDEX_MAGIC, IndexHeader
from paxos.records import (
    DELTA_MAGIC,
    PAXOS_MAGIC,
    Leader,
    fresh_lockspace,
    fresh_resource,
    name_of,
    verify_delta,
    verify_paxos,
)
from paxos.steps import Steps, now, read, write
from paxos.timing import DEFAULT_IO_TIMEOUT, INIT_WRITE_TIMEOUT

T = TypeVar("T")


def _on(disk: Disk, use: Callable[[Device], Steps[T]]) -> T:
    with Devices() as devices, Engine(devices, capacity=8) as engine:
        return engine.run(use(devices.open(os.path.abspath(disk.path), DEFAULT_IO_TIMEOUT)))


def _place(disk: Disk) -> Place:
    return Place(os.path.abspath(disk.path), disk.offset)


def _result(action: Callable[[], object]) -> int:
    try:
        action()
    except LeaseholdError as error:
        return error.code
    return 0


def _done(name: str, result: int) -> int:
    print(f"{name} done {result}")
    return result


# ------------------------------------------------------------------------------------------------- formatting


def init(arguments: Arguments) -> int:
    def action() -> None:
        sizes = geometry(arguments)
        if arguments.text("s"):
            wanted = lockspace(arguments)
            _on(wanted.disk, lambda device: _init_lockspace(device, arguments, wanted.name, wanted.disk, sizes))
        for one in resources(arguments):
            for disk in one.disks:
                _on(disk, partial(_init_resource, arguments=arguments, one=one, disk=disk, sizes=sizes))

    return _done("init", _result(action))


def _init_lockspace(
    device: Device, arguments: Arguments, name: bytes, disk: Disk, sizes: Geometry | None
) -> Steps[None]:
    place = _place(disk)
    area, first = fresh_lockspace(name, sizes or Geometry.default(device.sector_size), arguments.number("o"))
    yield from write(place.disk, place.offset, area, INIT_WRITE_TIMEOUT)
    yield from write(place.disk, place.offset, first, INIT_WRITE_TIMEOUT)


def _init_resource(
    device: Device, arguments: Arguments, one: Resource, disk: Disk, sizes: Geometry | None
) -> Steps[None]:
    place = _place(disk)
    cleared_at = int((yield from now())) if arguments.flag("z") else None
    chosen = sizes or Geometry.default(device.sector_size)
    image = fresh_resource(one.lockspace, one.name, chosen, arguments.number("n"), cleared_at)
    yield from write(place.disk, place.offset, image, INIT_WRITE_TIMEOUT)


# --------------------------------------------------------------------------------------------------- reading


def read_leader(arguments: Arguments) -> int:
    if arguments.text("s"):
        wanted = lockspace(arguments)
        return _show_leader(wanted.disk, wanted.host_id, lambda found, place: verify_delta(found, place, wanted.name))
    named = resources(arguments)[0]
    return _show_leader(
        named.disks[0], None, lambda found, place: verify_paxos(found, place, named.lockspace, named.name, None)
    )


def _show_leader(disk: Disk, host_id: int | None, verify: Callable[[Leader, Place], None]) -> int:
    """`host_id`: of a lockspace's slot, None for a resource."""
    found: Leader | None = None

    def action() -> None:
        nonlocal found
        found = _on(disk, lambda _device: _leader(_place(disk), host_id or 1))
        verify(found, _place(disk))

    result = _done("read_leader", _result(action))
    if found is not None:
        _print_leader(found, host_id is not None)
    return result


def _leader(place: Place, host_id: int) -> Steps[Leader]:
    """The record at a place, or with a host id the one of its slot."""
    first = Leader.unpack((yield from read(place.disk, place.offset, PROBE_LENGTH, DEFAULT_IO_TIMEOUT)))
    if host_id <= 1:
        return first
    sector = first.sector_size if first.sector_size in SECTOR_FLAGS else 512
    offset = place.at((host_id - 1) * sector)
    return Leader.unpack((yield from read(place.disk, offset, sector, DEFAULT_IO_TIMEOUT)))


def _print_leader(found: Leader, delta: bool) -> None:
    last = ("extra1", "extra2", "extra3") if delta else ("write_id", "write_generation", "write_timestamp")
    values = {
        "magic": f"{found.magic:#x}",
        "version": f"{found.version:#x}",
        "flags": f"{found.flags:#x}",
        "sector_size": found.sector_size,
        "num_hosts": found.num_hosts,
        "max_hosts": found.max_hosts,
        "owner_id": found.owner_id,
        "owner_generation": found.owner_generation,
        "lver": found.lver,
        "space_name": _text(found.space_name),
        "resource_name": _text(found.resource_name),
        "timestamp": found.timestamp,
        "checksum": f"{found.checksum:#x}",
        "io_timeout": found.io_timeout,
        last[0]: found.write_id,
        last[1]: found.write_generation,
        last[2]: found.write_timestamp,
    }
    for key, value in values.items():
        print(f"{key} {value}")


def _text(field: bytes) -> str:
    return name_of(field).decode(errors="surrogateescape")


# --------------------------------------------------------------------------------------------------- dumping


def dump(arguments: Arguments) -> int:
    """Every area from an offset on, up to the first that is none."""
    path, _, rest = (arguments.rest[0] if arguments.rest else "").partition(":")
    offset, _, size = rest.partition(":")
    if not os.path.exists(path):
        print(f"Device {path} not found.")
        return -2
    start = int(offset or 0)
    end = start + int(size) if size else os.path.getsize(path) if os.path.isfile(path) else sys.maxsize
    try:
        lines = _on(Disk(path), lambda _device: _dump(os.path.abspath(path), start, end, geometry(arguments)))
    except LeaseholdError as error:
        print(error, file=sys.stderr)
        return error.code
    if lines is None:
        print("Cannot find sector_size and align_size, set with -A and -Z.")
        return -22
    print(f"{'offset':>8} {'lockspace':>36} {'resource':>48} {'timestamp':>10} {'own':>4} {'gen':>4} lver")
    for line in lines:
        print(line)
    return 0


def _dump(path: str, start: int, end: int, sizes: Geometry | None) -> Steps[list[str] | None]:
    """A line for each lease in use; None where not even the first area tells its sizes."""
    lines: list[str] = []
    at = start
    while at + PROBE_LENGTH <= end:
        first = yield from read(path, at, PROBE_LENGTH, DEFAULT_IO_TIMEOUT)
        leader = Leader.unpack(first)
        found = sizes or _sizes(bytes(first))
        if found is None:
            return None if at == start else lines
        length = min(found.align_size, end - at)
        area = bytes((yield from read(path, at, length, DEFAULT_IO_TIMEOUT)))
        lines.extend(_dump_area(area, at, leader, found))
        at += found.align_size
    return lines


def _sizes(first: bytes) -> Geometry | None:
    """The sizes that an area's first record states; None where there is no record."""
    leader = Leader.unpack(first)
    try:
        if leader.magic in (DELTA_MAGIC, PAXOS_MAGIC):
            return Geometry.from_leader(leader.sector_size, leader.flags)
        if leader.magic == INDEX_MAGIC:
            return IndexHeader.unpack(first).geometry
    except LeaseholdError:
        return None
    return None


def _dump_area(area: bytes, at: int, leader: Leader, sizes: Geometry) -> Iterator[str]:
    if leader.magic == DELTA_MAGIC:
        for slot in range(0, len(area) - sizes.sector_size + 1, sizes.sector_size):
            one = Leader.unpack(area[slot : slot + sizes.sector_size])
            if one.magic == DELTA_MAGIC and (one.timestamp or one.owner_id):
                yield f"{_row(at + slot, one)}"
    elif leader.magic == PAXOS_MAGIC:
        yield f"{_row(at, leader)} {leader.lver}"
        for host_id, generation in shared_hosts(area, sizes, leader.num_hosts):
            yield f"{'':106}{host_id:04} {generation:04} SH"
    elif leader.magic == INDEX_MAGIC:
        header = IndexHeader.unpack(area)
        entries = f"{header.flags:#x} {header.sector_size} {header.max_resources} {header.rx_offset}"
        yield f"{at:08} {_text(header.lockspace_name):>36} rindex_header {entries}"


def _row(at: int, leader: Leader) -> str:
    names = f"{_text(leader.space_name):>36} {_text(leader.resource_name):>48}"
    return f"{at:08} {names} {leader.timestamp:010} {leader.owner_id:04} {leader.owner_generation:04}"


# -------------------------------------------------------------------------------------------------- the index


def _index(arguments: Arguments) -> Index:
    return statestring.parse_index(os.fsencode(arguments.text("x") or ""))


def format_index(arguments: Arguments) -> int:
    def action() -> None:
        wanted, sizes = _index(arguments), geometry(arguments)
        _on(
            wanted.disk,
            lambda device: index.format_index(
                wanted.lockspace, _place(wanted.disk), sizes or Geometry.default(device.sector_size)
            ),
        )

    return _done("format", _result(action))


def _changed(arguments: Arguments, change: Callable[[index.Index], Steps[T]]) -> T:
    wanted = _index(arguments)

    def use(_device: Device) -> Steps[T]:
        opened = yield from index.open_index(wanted.lockspace, _place(wanted.disk), DEFAULT_IO_TIMEOUT)
        return (yield from change(opened))

    return _on(wanted.disk, use)


def lookup(arguments: Arguments) -> int:
    found: list[WireEntry] = []

    def action() -> None:
        named = entry(arguments)
        name, offset = _changed(
            arguments,
            lambda opened: index.lookup(opened, DEFAULT_IO_TIMEOUT, named.name or None, named.offset or None),
        )
        found.append(WireEntry(name, offset))

    result = _done("lookup", _result(action))
    for one in found:
        print_entry(one)
    return result


def update(arguments: Arguments) -> int:
    def action() -> None:
        named = entry(arguments)
        removing = arguments.flag("z")
        if not named.offset or not (named.name or removing):
            raise InvalidUse(reason="an entry needs an offset, and a name to be added")
        name = b"" if removing else named.name
        _changed(arguments, lambda opened: index.set_entry_offline(opened, named.offset, name, DEFAULT_IO_TIMEOUT))

    return _done("update", _result(action))


def rebuild(arguments: Arguments) -> int:
    def action() -> None:
        _changed(arguments, lambda opened: index.rebuild_offline(opened, DEFAULT_IO_TIMEOUT))

    return _done("rebuild", _result(action))


ACTIONS: dict[str, Callable[[Arguments], int]] = {
    "init": init,
    "read_leader": read_leader,
    "dump": dump,
    "format": format_index,
    "lookup": lookup,
    "update": update,
    "rebuild": rebuild,
}
