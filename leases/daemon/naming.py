"""What callers may write for a lockspace, a resource, an index or a name, and how messages show them."""

from __future__ import annotations

from dataclasses import replace

from leases.daemon import statestring
from leases.daemon.wire import Disk, Index, IndexEntry, Lockspace, Resource

Name = str | bytes
LockspaceLike = Lockspace | str | bytes
ResourceLike = Resource | str | bytes
IndexLike = Index | str | bytes
EntryLike = IndexEntry | str | bytes


def as_name(name: Name) -> bytes:
    return name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")


def as_lockspace(lockspace: LockspaceLike) -> Lockspace:
    if isinstance(lockspace, Lockspace):
        return lockspace
    return statestring.parse_lockspace(as_name(lockspace))


def as_resource(resource: ResourceLike) -> Resource:
    return resource if isinstance(resource, Resource) else statestring.parse_resource(as_name(resource))


def as_index(index: IndexLike) -> Index:
    return index if isinstance(index, Index) else statestring.parse_index(as_name(index))


def as_entry(entry: EntryLike) -> IndexEntry:
    return entry if isinstance(entry, IndexEntry) else statestring.parse_index_entry(as_name(entry))


def with_flags(resource: ResourceLike, flags: int) -> Resource:
    resource = as_resource(resource)
    return replace(resource, flags=resource.flags | flags)


def show(what: Lockspace | Resource | Index | Disk | Name) -> str:
    """For messages: short, and readable whatever it contains."""
    match what:
        case Lockspace():
            text = b"%s:%d:" % (what.name, what.host_id)
            return text.decode("utf-8", "backslashreplace") + show(what.disk)
        case Resource():
            text = b"%s:%s" % (what.lockspace, what.name)
            places = "".join(f":{show(disk)}" for disk in what.disks)
            return text.decode("utf-8", "backslashreplace") + places
        case Index():
            return f"{show(what.lockspace)}:{show(what.disk)}"
        case Disk():
            return f"{what.path}:{what.offset}"
        case bytes():
            return what.decode("utf-8", "backslashreplace")
    return what
