"""Leases as their users know them: taken, refused, waited for, shared, converted, given back, lost."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time

import pytest

from leases.keeper.watchdog import boot_time
from leases.lease import FencingToken
from leases.volume import Volume
from paxos.disk.abort import AbortSignal
from paxos.errors import (
    Aborted,
    AlreadyHeld,
    InvalidUse,
    LeaseHeld,
    LverMismatch,
    NoSuchLease,
    NotHeld,
    OwnerMayBeDead,
    SharedHolders,
    TryAgain,
)
from tests.support.volumes import HostProcesses, Joiner

slow = pytest.mark.slow


# ------------------------------------------------------------------------------------------------------- token


def token(lver: int, resource: str = "vm1") -> FencingToken:
    return FencingToken("LS", resource, lver, 3, 7)


def test_a_later_token_is_the_larger_one() -> None:
    assert token(1) < token(2) <= token(2) < token(10)
    assert sorted([token(3), token(1), token(2)]) == [token(1), token(2), token(3)]


def test_tokens_of_different_resources_have_no_order() -> None:
    with pytest.raises(TypeError):
        assert token(1) < token(2, "vm2")


def test_a_token_reads_as_one_line() -> None:
    assert str(token(5)) == "LS:vm1:5:3:7"
    assert str(token(5, "a:b\\c")) == "LS:a\\:b\\\\c:5:3:7"


# --------------------------------------------------------------------------------------------- taking and giving


@slow
def test_a_lease_is_held_by_one_host_at_a_time(volume: Volume, join: Joiner) -> None:
    first, second = join(volume, 1), join(volume, 2)
    with first.acquire("r0") as lease:
        assert str(lease.token) == "LS:r0:1:1:1" and not lease.shared
        assert boot_time() < lease.deadline <= boot_time() + 8
        with pytest.raises(LeaseHeld) as held:
            second.acquire("r0")
        assert held.value.owner_host == 1 and held.value.generation == 1
        assert held.value.owner_name.startswith(os.uname().nodename.encode()[:10])
    with second.acquire("r0") as lease:
        assert lease.token.lver > 1
    assert lease.deadline == 0 and lease.released


@slow
def test_the_same_host_can_not_take_it_twice(volume: Volume, join: Joiner) -> None:
    lockspace = join(volume, 1)
    with lockspace.acquire("r0"):
        with pytest.raises(AlreadyHeld):
            lockspace.acquire("r0")
        with pytest.raises(AlreadyHeld):
            lockspace.acquire("r0", shared=True)
    lockspace.acquire("r0").release()


@slow
def test_what_is_not_in_the_index_can_not_be_taken(volume: Volume, join: Joiner) -> None:
    with pytest.raises(NoSuchLease):
        join(volume, 1).acquire("nope")


@slow
def test_a_lease_at_a_certain_version_or_none(volume: Volume, join: Joiner) -> None:
    lockspace = join(volume, 1)
    with pytest.raises(LverMismatch):
        lockspace.acquire("r0", lver=4)
    lockspace.acquire("r0", lver=0).release()


@slow
def test_releasing_again_is_harmless_and_using_it_is_not(volume: Volume, join: Joiner) -> None:
    lease = join(volume, 1).acquire("r0")
    lease.release()
    lease.release()
    with pytest.raises(NotHeld):
        lease.convert(shared=True)


@slow
def test_two_threads_never_hold_it_together(volume: Volume, join: Joiner) -> None:
    lockspace = join(volume, 1)
    inside: list[int] = []
    problems: list[object] = []

    def work(number: int) -> None:
        for _ in range(10):
            try:
                with lockspace.acquire("r0", wait=30):
                    inside.append(number)
                    problems.extend([number] if len(inside) != 1 else [])
                    inside.remove(number)
            except Exception as error:
                problems.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


# ---------------------------------------------------------------------------------------------------- waiting


@slow
def test_a_waiting_host_gets_it_when_it_is_given_back(volume: Volume, join: Joiner) -> None:
    first, second = join(volume, 1), join(volume, 2)
    lease = first.acquire("r0")
    refusals: list[object] = []
    threading.Timer(1.0, lease.release).start()
    with second.acquire("r0", wait=float("inf"), on_refusal=refusals.append) as taken:
        assert lease.released and taken.token > lease.token
    assert refusals and isinstance(refusals[0], LeaseHeld | OwnerMayBeDead)


@slow
def test_waiting_ends_with_who_has_it_and_that_it_lives(volume: Volume, join: Joiner) -> None:
    first, second = join(volume, 1), join(volume, 2)
    with first.acquire("r0"), pytest.raises(LeaseHeld) as held:
        second.acquire("r0", wait=0)
    assert held.value.owner_host == 1


@slow
def test_waiting_can_be_given_up(volume: Volume, join: Joiner) -> None:
    first, second = join(volume, 1), join(volume, 2)
    abort = AbortSignal()
    threading.Timer(0.5, abort.set, ("enough",)).start()
    with first.acquire("r0"), pytest.raises(Aborted, match="enough"):
        second.acquire("r0", wait=60, abort=abort)


@slow
def test_control_c_ends_waiting_and_leaves_the_lockspace_usable(volume: Volume, join: Joiner) -> None:
    first, second = join(volume, 1), join(volume, 2)
    main = threading.main_thread().ident
    assert main is not None
    with first.acquire("r0"):
        threading.Timer(0.5, signal.pthread_kill, (main, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            second.acquire("r0", wait=60)
    second.acquire("r0", wait=10).release()


@slow
def test_a_lease_is_handed_on_whoever_waits_shared_holders_included(volume: Volume, join: Joiner) -> None:
    first, second = join(volume, 1), join(volume, 2)
    shared = first.acquire("r0", shared=True)
    threading.Timer(1.0, shared.release).start()
    with second.acquire("r0", wait=30) as lease:
        assert shared.released and not lease.shared


# ------------------------------------------------------------------------------------------ sharing, converting


@slow
def test_hosts_and_threads_share_a_shared_lease(volume: Volume, join: Joiner) -> None:
    first, second = join(volume, 1), join(volume, 2)
    one, two = first.acquire("r0", shared=True), first.acquire("r0", shared=True)
    other = second.acquire("r0", shared=True)
    assert volume.lease("r0").mode == "shared" and len(volume.lease("r0").owners) == 2
    one.release()
    with pytest.raises(SharedHolders):
        second.convert(other, shared=False)
    two.release()
    other.convert(shared=False)
    assert not other.shared and volume.lease("r0").mode == "exclusive"
    other.release()
    assert volume.lease("r0").mode == "free"


@slow
def test_a_lease_shared_in_this_program_is_not_made_exclusive(volume: Volume, join: Joiner) -> None:
    lockspace = join(volume, 1)
    one, two = lockspace.acquire("r0", shared=True), lockspace.acquire("r0", shared=True)
    with pytest.raises(AlreadyHeld):
        one.convert(shared=False)
    two.release()
    one.convert(shared=False)
    assert not one.shared


@slow
def test_an_exclusive_lease_becomes_shared_and_others_get_in(volume: Volume, join: Joiner) -> None:
    first, second = join(volume, 1), join(volume, 2)
    lease = first.acquire("r0")
    lease.convert(shared=True)
    second.acquire("r0", shared=True, wait=10).release()
    lease.convert(shared=False)
    with pytest.raises((LeaseHeld, OwnerMayBeDead)):
        second.acquire("r0", shared=True, nowait=True)


@slow
def test_the_value_block_goes_from_holder_to_holder(volume: Volume, join: Joiner) -> None:
    first, second = join(volume, 1), join(volume, 2)
    with first.acquire("r0", lvb=True) as lease:
        lease.lvb = b"hello"
    with second.acquire("r0", lvb=True, wait=10) as lease:
        assert lease.lvb == b"hello".ljust(512, b"\0")
        lease.convert(shared=True)
        with pytest.raises(InvalidUse):
            lease.lvb = b"not mine alone"
        lease.convert(shared=False)
        lease.release(lvb=b"bye")
    with first.acquire("r0", wait=10) as lease:
        assert lease.lvb.rstrip(b"\0") == b"bye"


# ------------------------------------------------------------------------------------------- holders and takeover


@slow
def test_a_process_can_be_named_as_the_holder(volume: Volume, join: Joiner) -> None:
    lockspace = join(volume, 1, watchdog="guardian")
    with subprocess.Popen(["sleep", "1000"]) as holder:
        with lockspace.acquire("r0") as lease:
            lease.add_holder(holder.pid)
            assert lease.holders == (holder.pid,)
        assert holder.poll() is None  # released, not lost
        holder.kill()


@slow
def test_a_holder_must_be_a_process(volume: Volume, join: Joiner) -> None:
    lockspace = join(volume, 1)
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    for pid in (0, 1, -5, gone.pid):
        with pytest.raises(InvalidUse):
            lockspace.acquire("r0", holder=pid)
    lockspace.acquire("r0").release()


@slow
def test_a_killed_hosts_lease_is_taken_over_when_it_is_dead_and_not_before(
    volume: Volume, join: Joiner, host_process: HostProcesses
) -> None:
    other = join(volume, 2)
    holder = host_process(volume.path, 1)
    token = holder.ask("acquire", "r0", 0)["token"]
    time.sleep(5)  # the other host has seen it renew
    holder.kill()
    killed_at = boot_time()
    with pytest.raises((OwnerMayBeDead, LeaseHeld)):
        other.acquire("r0", nowait=True)
    with other.acquire("r0", wait=60) as lease:
        assert lease.token.lver > int(token.split(":")[2])
        # its last renewal was at most 2.5 s before it was killed; it is dead 8 + 4 s after that
        assert boot_time() - killed_at > 8 + 4 - 3.0


@slow
def test_an_acquire_that_waits_for_a_dead_host_takes_it_over(
    volume: Volume, join: Joiner, host_process: HostProcesses
) -> None:
    holder = host_process(volume.path, 1)
    holder.ask("acquire", "r0", 0)
    holder.kill()
    other = join(volume, 2)
    with other.acquire("r0") as lease:
        assert lease.token.host_id == 2
    with pytest.raises(TryAgain), other.acquire("r1"):
        raise TryAgain(reason="a body's own error comes through")
