"""Every way a lease operation can end other than well: one class each, with facts, a number and what to do.

The number is sanlock's (ondisk.md section 11; negative errno above -200), because its clients need it on the
wire. Classes are grouped by whose fault it is:

    InvalidUse        the caller's                      BadRecord      what lies on the disk is not what must be
    DiskError         the disk's or its path's          HeldElsewhere  another host's right
    LeaseLost         we no longer own what we owned    TryAgain       nobody's: repeat it later

Facts are keyword arguments and become attributes; the message is made from them.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from paxos.steps import Pending


class LeaseholdError(Exception):
    """Base of all. `code` is sanlock's number, `template` the message, `advice` what to do about it."""

    code: ClassVar[int] = -201
    name: ClassVar[str] = "ERROR"
    template: ClassVar[str] = "lease operation failed"
    advice: ClassVar[str] = ""

    def __init__(self, **facts: Any) -> None:
        super().__init__()
        self.facts = facts
        for fact, value in facts.items():
            setattr(self, fact, value)

    def __str__(self) -> str:
        try:
            return self.template.format_map(_Readable(self.facts))
        except (ValueError, TypeError):
            return f"{self.template} {self.facts}"

    def __repr__(self) -> str:
        inner = ", ".join(f"{fact}={value!r}" for fact, value in self.facts.items())
        return f"{type(self).__name__}({inner})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.facts)

    if TYPE_CHECKING:  # facts are attributes; which ones, the template says

        def __getattr__(self, fact: str) -> Any: ...


class _Readable(dict[str, Any]):
    """Facts as a message shows them: names as text, what is missing as a question mark."""

    def __getitem__(self, key: str) -> Any:
        value = self.get(key, "?")
        if isinstance(value, bytes):
            return value.split(b"\0")[0].decode("utf-8", "backslashreplace")
        return round(value, 1) if isinstance(value, float) else value


def _rebuild(cls: type[LeaseholdError], facts: dict[str, Any]) -> LeaseholdError:
    return cls(**facts)


# ---------------------------------------------------------------------------------------------- the caller's


class InvalidUse(LeaseholdError):
    """The caller asked for something that can't be."""

    code = -errno.EINVAL
    name = "EINVAL"
    template = "{reason}"


class SizesInvalid(InvalidUse):
    code, name = -230, "ADDLS_SIZES"
    template = "sector size {sector_size} with align size {align_size} is no valid pair"
    advice = "use 512 with 1M, or 4096 with 1M, 2M, 4M or 8M"


class HostIdInvalid(InvalidUse):
    code, name = -231, "ADDLS_INVALID_HOSTID"
    template = "host id {host_id} is not between 1 and {max_hosts}"


class NotJoined(InvalidUse):
    code, name = -errno.ENOSPC, "ENOSPC"
    template = "lockspace {lockspace} is not joined, or is failing"


class AlreadyHeld(InvalidUse):
    code, name = -errno.EEXIST, "EEXIST"
    template = "{resource} is already held on this host"


class NotHeld(InvalidUse):
    code, name = -errno.ENOENT, "ENOENT"
    template = "{resource} is not held"


class NameTaken(InvalidUse):
    code, name = -errno.EEXIST, "EEXIST"
    template = "a lease named {resource} exists already at offset {offset}"
    advice = "choose another name or delete that lease first"


class NoSuchLease(InvalidUse):
    code, name = -errno.ENOENT, "ENOENT"
    template = "no lease named {resource} in the index at {place}"
    advice = "`leasehold lease list` shows the leases there are, `leasehold lease create` makes one"


class StillHeld(InvalidUse):
    code, name = -errno.EBUSY, "EBUSY"
    template = "lockspace {lockspace} can't be left while leases are held: {resources}"
    advice = "release them first, or leave by force"


class VolumeInUse(InvalidUse):
    """`found` says what is there. Nothing was written."""

    code, name = -errno.EEXIST, "EEXIST"
    template = "{path} is not empty: {found}"
    advice = "look what it is; laying it out by force destroys it"


class IndexFull(InvalidUse):
    code, name = -errno.ENOENT, "ENOENT"
    template = "the index at {place} has no free entry ({max_resources} used)"


class LvbUnsupported(InvalidUse):
    """The fixed LVB sector lies outside areas of these sizes (ondisk.md 2.8)."""

    template = "areas of sector size {sector_size} and align size {align_size} have no room for an LVB"
    advice = "use 512/1M or 4096/8M"


class LverMismatch(InvalidUse):
    code, name = -240, "ACQUIRE_LVER"
    template = "{resource} is at version {lver}, not {wanted}"


class RequestOld(InvalidUse):
    code, name = -272, "REQUEST_OLD"
    template = "version {wanted} of {resource} was asked for, it is at {lver} already"


class RequestSuperseded(InvalidUse):
    code, name = -273, "REQUEST_LVER"
    template = "version {wanted} of {resource} was asked for, somebody asked for {pending_lver} already"


# ------------------------------------------------------------------------------------------------ the disk's


class DiskError(LeaseholdError):
    """An I/O failed. `errno` (positive), `disk`, `offset`, `length` in bytes, `operation` read or write."""

    name = "EIO"
    template = "{operation} of {length} bytes at {disk}:{offset} failed: {reason}"

    def __init__(self, **facts: Any) -> None:
        facts.setdefault("errno", errno.EIO)
        facts.setdefault("reason", errno.errorcode.get(facts["errno"], "unknown error"))
        super().__init__(**facts)
        self.code = -int(facts["errno"])  # type: ignore[misc]


class ShortIO(DiskError):
    """Fewer bytes moved than asked, e.g. beyond the end of the device."""

    name = "EMSGSIZE"
    template = "{operation} of {length} bytes at {disk}:{offset} moved only {moved}: is the volume too small?"

    def __init__(self, **facts: Any) -> None:
        facts.setdefault("errno", errno.EMSGSIZE)
        super().__init__(**facts)


class StaleRead(DiskError):
    """A read showed an older state of the disk than this host wrote before: nothing may be built on it."""

    name = "EIO"
    template = "{disk}:{offset}: the disk shows an older block of this host (ballot {found}, written {written})"
    advice = "a path that failed over may serve old data; check multipath and caches between here and the disk"


class CannotOpen(DiskError):
    name = "ENODEV"
    template = "cannot open {disk}: {reason}"


class IOTimeout(DiskError):
    """Not done in time, and still in flight: it may happen at any later moment. `pending` reaps it."""

    name = "AIO_TIMEOUT"
    template = "{operation} of {length} bytes at {disk}:{offset} not done after {timeout} s; it may still happen"
    advice = "check the path to the disk; nothing is decided until the disk gives the I/O back"
    pending: Pending

    def __init__(self, **facts: Any) -> None:
        facts.setdefault("errno", errno.ETIMEDOUT)
        super().__init__(**facts)
        self.code = -202  # type: ignore[misc]


class NotSent(DiskError):
    """Never started: so much I/O of this disk is overdue already that no more is sent to it."""

    name = "AIO_TIMEOUT"
    template = "{operation} of {length} at {disk}:{offset} not sent in {timeout} s, too much is in flight"
    advice = "check the path to the disk"

    def __init__(self, **facts: Any) -> None:
        facts.setdefault("errno", errno.EBUSY)
        super().__init__(**facts)
        self.code = -202  # type: ignore[misc]


class BallotReadFailed(DiskError):
    name = "DBLOCK_READ"
    template = "ballot for {resource}: {cause}"

    def __init__(self, **facts: Any) -> None:
        super().__init__(**facts)
        self.code = -210  # type: ignore[misc]


class BallotWriteFailed(DiskError):
    name = "DBLOCK_WRITE"
    template = "ballot for {resource}: {cause}"

    def __init__(self, **facts: Any) -> None:
        super().__init__(**facts)
        self.code = -211  # type: ignore[misc]


class WatchdogUnavailable(LeaseholdError):
    code, name = -203, "WD_ERROR"
    template = "watchdog: {reason}"


# ------------------------------------------------------------------------------------ what lies on the disk


class BadRecord(LeaseholdError):
    """Bytes on the disk that must not be believed. `place` says where; nothing was written because of them."""

    template = "{place}: {record} is damaged"


class RecordTooShort(BadRecord):
    """Fewer bytes than the record has. `needed` and `got` in bytes."""

    template = "{record} takes {needed} bytes, only {got} are here"


class LeaderMagicError(BadRecord):
    code, name = -223, "LEADER_MAGIC"
    template = "{place}: no {record} here (magic {found:#x})"
    advice = "check path and offset; lay out the volume if it is new"


class LeaseCleared(LeaderMagicError):
    template = "{place}: the lease that was here has been deleted"
    advice = "look the lease up again in the index"


class LeaderVersionError(BadRecord):
    code, name = -224, "LEADER_VERSION"
    template = "{place}: {record} has version {found:#x}, which this program does not know"
    advice = "it was written by a newer program; it is left alone"


class LeaderFlagsError(BadRecord):
    """Newer sanlock marks leases with rules of their own (compare-and-write, no timeout) by flags."""

    code, name = -224, "LEADER_VERSION"
    template = "{place}: {record} has flags {found:#x}, of which {unknown:#x} are unknown to this program"
    advice = "it follows rules of a newer program; it is left alone"


class SectorSizeError(BadRecord):
    code, name = -225, "LEADER_SECTORSIZE"
    template = "{place}: {record} states sector size {found}"


class LockspaceNameError(BadRecord):
    code, name = -226, "LEADER_LOCKSPACE"
    template = "{place}: {record} belongs to lockspace {found}, not {expected}"


class ResourceNameError(BadRecord):
    code, name = -227, "LEADER_RESOURCE"
    template = "{place}: {record} is for {found}, not {expected}"


class NumHostsError(BadRecord):
    code, name = -228, "LEADER_NUMHOSTS"
    template = "{place}: the lease is laid out for {num_hosts} hosts, this host has id {host_id}"
    advice = "a host with a smaller id may acquire it with a larger num_hosts"


class LeaderChecksumError(BadRecord):
    code, name = -229, "LEADER_CHECKSUM"
    template = "{place}: {record} has checksum {found:#x}, its bytes give {computed:#x}"
    advice = "somebody wrote over it; `leasehold volume check` shows what"


class BlockChecksumError(BadRecord):
    code, name = -214, "DBLOCK_CHECKSUM"
    template = "{place}: the block of host {host_id} is damaged"
    advice = "a damaged block may hide a vote, so nothing is decided; repair it when no host uses the lease"


class BlockMisplaced(BlockChecksumError):
    template = "{place}: the block of host {host_id} has ballot number {mbal}, which is another host's"


class RequestMagicError(BadRecord):
    code, name = -270, "REQUEST_MAGIC"
    template = "{place}: no request record here (magic {found:#x})"


class RequestVersionError(BadRecord):
    code, name = -271, "REQUEST_VERSION"
    template = "{place}: request record has version {found:#x}, which this program does not know"


class IndexMagicError(BadRecord):
    code, name = -274, "RINDEX_MAGIC"
    template = "{place}: no resource index here (magic {found:#x})"


class IndexVersionError(BadRecord):
    code, name = -275, "RINDEX_VERSION"
    template = "{place}: resource index has version {found:#x}, which this program does not know"


class IndexLockspaceError(BadRecord):
    code, name = -276, "RINDEX_LOCKSPACE"
    template = "{place}: resource index belongs to lockspace {found}, not {expected}"


class IndexOffsetError(BadRecord):
    code, name = -277, "RINDEX_OFFSET"
    template = "{place}: offset {offset} is not one of this resource index"


class IndexNameError(BadRecord):
    code, name = -278, "RINDEX_DIFF"
    template = "{place}: the index has {found} at offset {offset}, not {expected}"


# ------------------------------------------------------------------------------------- another host's right


class HeldElsewhere(LeaseholdError):
    """Another host has it. `owner_host`, `generation`, and where known `owner_name`, `renewed_ago` (s)."""

    template = "{resource} is held by host {owner_host}"


class LeaseHeld(HeldElsewhere):
    code, name = -243, "ACQUIRE_IDLIVE"
    template = "{resource} is held by host {owner_host} (generation {generation}), which is alive"
    advice = "wait for it, or ask its owner to release it"


class LeaseOwned(HeldElsewhere):
    code, name = -244, "ACQUIRE_OWNED"
    template = "{resource} was just taken by host {owner_host} (generation {generation})"


class LeaseOther(HeldElsewhere):
    code, name = -245, "ACQUIRE_OTHER"
    template = "the ballot for {resource} gave it to host {owner_host} (generation {generation})"


class OwnerMayBeDead(HeldElsewhere):
    code, name = -247, "ACQUIRE_OWNED_RETRY"
    template = "{resource} is held by host {owner_host}, which may be dead; it can be taken in {wait} s"
    advice = "repeat after that time, or acquire with waiting"


class SharedHolders(HeldElsewhere):
    code, name = -errno.EAGAIN, "EAGAIN"
    template = "{resource} is held shared by hosts {hosts}"


class HostIdBusy(HeldElsewhere):
    code, name = -262, "HOSTID_BUSY"
    template = "host id {host_id} of lockspace {lockspace} is in use by {owner_name}"
    advice = "choose another host id"


# ---------------------------------------------------------------------------------------------- what we lost


class LeaseLost(LeaseholdError):
    """We no longer own what we owned."""

    template = "{resource} is no longer ours"


class ReleaseVersion(LeaseLost):
    code, name = -250, "RELEASE_LVER"
    template = "{resource} is at version {lver} on disk, we held {ours}"


class ReleaseOwner(LeaseLost):
    code, name = -251, "RELEASE_OWNER"
    template = "{resource} is owned by host {owner_host} on disk (timestamp {timestamp}), not as we left it"


class HostLeaseLost(LeaseLost):
    """The own delta lease is not ours any more: recovery starts at once."""

    template = "host id {host_id} of lockspace {lockspace} is no longer ours"


class RenewOwner(HostLeaseLost):
    code, name = -260, "RENEW_OWNER"
    template = "host id {host_id} of {lockspace} is now owned by {owner_name} (generation {generation})"
    advice = "are two hosts configured with this id?"


class RenewDiff(HostLeaseLost):
    code, name = -261, "RENEW_DIFF"
    template = "the delta lease of host id {host_id} of {lockspace} was changed by somebody else"
    advice = "are two hosts configured with this id, or was the volume written over?"


class VolumeGone(HostLeaseLost):
    """Others can't see what we write: they may be using another volume under that path."""

    template = "{path} was deleted or replaced while lockspace {lockspace} was joined"
    advice = "never replace a volume while hosts are joined; stop what used it"


# ------------------------------------------------------------------------------------------------- try again


class TryAgain(LeaseholdError):
    """Nothing is wrong that time does not mend."""

    code, name = -errno.EAGAIN, "EAGAIN"
    template = "{reason}"


class WriteUnsettled(TryAgain):
    """An own write to this resource timed out and may still land: nothing is decided about it until then."""

    template = "a write of this host to {resource} is still in flight; nothing can be decided until it ends"


class SharedRetries(TryAgain):
    code, name = -246, "ACQUIRE_SHRETRY"
    template = "{resource}: {retries} tries at a shared lease met other hosts' each time"


class BallotsExhausted(TryAgain):
    """No ballot could be finished. Better than the reference, which tries for ever (ondisk.md 13 item 6)."""

    code, name = -212, "DBLOCK_LVER"
    template = "{resource}: no ballot succeeded in {tries} tries"


class NoFreeHostId(TryAgain):
    template = "no host id of lockspace {lockspace} is free (of {hosts})"
    advice = "let a host leave, or name an id whose owner is dead"


class HostsUnknown(TryAgain):
    template = "the hosts of lockspace {lockspace} have not been examined yet"


class Aborted(LeaseholdError):
    code, name = -201, "ERROR"
    template = "{reason}"
