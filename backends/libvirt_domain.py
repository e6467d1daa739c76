"""A libvirt domain's XML as an owner and its resources, by the rules by which libvirt itself picks them.

Leases come first, then disks, in the order of the XML (lockmanager.md 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from leases.manager import Access, FailureAction, Owner, Resource
from paxos.errors import InvalidUse

#: what a disk's source may be, and the attribute that has its path
_PATHS = {"file": "file", "block": "dev", "dir": "dir"}


@dataclass(frozen=True, slots=True)
class Domain:
    owner: Owner
    resources: tuple[Resource, ...]
    on_failure: FailureAction


def parse_domain(xml: str) -> Domain:
    """Raises InvalidUse if this is no domain, or lacks what is needed."""
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise InvalidUse(reason=f"the domain's XML can't be read: {error}") from error
    try:
        owner = Owner(UUID(_text(root, "uuid")), _text(root, "name"), id=int(root.get("id", "0")))
        leases = [_lease(element) for element in root.iterfind("devices/lease")]
        action = FailureAction(root.findtext("on_lockfailure") or "poweroff")
    except ValueError as error:
        raise InvalidUse(reason=f"the domain's XML is not understood: {error}") from error
    disks = [disk for element in root.iterfind("devices/disk") if (disk := _disk(element)) is not None]
    return Domain(owner, (*leases, *disks), action)


def _text(element: Element, path: str) -> str:
    text = element.findtext(path)
    if not text:
        raise ValueError(f"there is no <{path}>")
    return text


def _lease(element: Element) -> Resource:
    target = element.find("target")
    if target is None or not target.get("path"):
        raise ValueError("a <lease> has no target path")
    offset = int(target.get("offset", "0"))
    return Resource.lease(element.findtext("lockspace") or "", _text(element, "key"), target.get("path", ""), offset)


def _disk(element: Element) -> Resource | None:
    """None for a disk without a path on this host: a network disk, an empty drive."""
    source = element.find("source")
    attribute = _PATHS.get(element.get("type", "file"))
    path = source.get(attribute) if source is not None and attribute is not None else None
    if not path:
        return None
    if element.find("readonly") is not None or element.get("device") == "cdrom":
        access = Access.READ_ONLY
    elif element.find("shareable") is not None:
        access = Access.SHARED
    else:
        access = Access.EXCLUSIVE
    return Resource.disk(path, access)
