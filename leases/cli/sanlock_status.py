"""What `sanlock client status` prints: one line a record, in the daemon's order or sorted by process or lockspace."""

from __future__ import annotations

from collections.abc import Iterable

from leases.daemon import statestring
from leases.daemon.exchange import Record, Status
from leases.daemon.wire import Lockspace, Resource

_LISTS = {"add": " ADD", "rem": " REM", "orphan": " ORPHAN"}


def print_status(status: Status, order: str, debug: bool) -> None:
    """`order`: "p", "s" or "" (as it comes); `debug`: with all values."""
    print(f"daemon {status.daemon.get('our_host_name', '')}")
    _print_values(status.daemon, debug)
    holding = {record.state.data32 for record in status.resources}
    idle = [record for record in status.clients if record.state.data32 not in holding]
    busy = [record for record in status.clients if record.state.data32 in holding]
    if order == "p":
        _print_all(idle, debug)
        _print_all(status.lockspaces, debug)
        for client in busy:
            _print_all([client], debug)
            pid = client.state.data32
            _print_all((one for one in status.resources if one.state.data32 == pid), debug)
    elif order == "s":
        _print_all([*idle, *busy], debug)
        for space in status.lockspaces:
            _print_all([space], debug)
            _print_all((one for one in status.resources if _lockspace_of(one) == space.state.name), debug)
    else:
        _print_all([*status.clients, *status.lockspaces, *status.resources], debug)


def _lockspace_of(record: Record) -> bytes:
    assert isinstance(record.about, Resource)
    return record.about.lockspace


def _print_all(records: Iterable[Record], debug: bool) -> None:
    for record in records:
        print(_line(record))
        _print_values(record.values, debug)


def _line(record: Record) -> str:
    mark = _LISTS.get(record.values.get("list", ""), "")
    if isinstance(record.about, Lockspace):
        return f"s {statestring.format_lockspace(record.about).decode(errors='surrogateescape')}{mark}"
    pid = record.state.data32 - (1 << 32) if record.state.data32 & 0x80000000 else record.state.data32
    if isinstance(record.about, Resource):
        about = record.about
        shown = Resource(about.lockspace, about.name, about.disks, about.flags, record.state.data64)
        return f"r {statestring.format_resource(shown).decode(errors='surrogateescape')} p {pid}{mark}"
    return f"p {pid} {record.state.name.decode(errors='surrogateescape')}"


def _print_values(values: dict[str, str], debug: bool) -> None:
    if debug:
        for key, value in values.items():
            print(f"    {key}={value}")
