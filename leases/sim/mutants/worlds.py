"""What befalls clusters on some hunting grounds besides the faults that are drawn: prepared before they start."""

from __future__ import annotations

from typing import Any

from leases.sim.checkers import Violation
from leases.sim.cluster import Cluster
from leases.sim.host import Host
from leases.sim.machine import Machine
from paxos.records import Leader
from paxos.steps import Write
from paxos.timing import CLOCK_RATE_ERROR, Timing


def two_io_timeouts(slow_io_timeout: int) -> Any:
    """Host 1 has a larger io_timeout than the others."""

    def prepare(cluster: Cluster) -> None:
        host = cluster.hosts[0]
        host.timing = Timing(slow_io_timeout, host.timing.fire_timeout)
        host.machine.margin = host.timing.feed_margin

    return prepare


def clocks_apart(cluster: Cluster) -> None:
    """The first host's clock runs slow and the others' fast, as far apart as clocks may run."""
    for host in cluster.hosts:
        apart = CLOCK_RATE_ERROR / 2
        host.machine.rate = 1 - apart if host is cluster.hosts[0] else 1 + apart


def one_host_id_for_two(cluster: Cluster) -> None:
    """The last host is configured with the first one's host id."""
    cluster.hosts[-1].host_id = cluster.hosts[0].host_id


def holders_lose_their_path(cluster: Cluster) -> None:
    """Every few minutes whoever holds r1 exclusively loses its path to the disk, until others have taken over."""
    world = cluster.world
    random = world.stream("lost paths")

    def lose(_: Any) -> None:
        holding = next((h for h in world.judge.holdings if h.exclusive), None)
        if holding is not None:
            for path in holding.machine.paths.values():
                path.go_down(world.now + 2 * cluster.hosts[0].timing.host_dead)
        world.after(random.uniform(100, 300), lose)

    world.after(30.0, lose)


def apart_and_lost(cluster: Cluster) -> None:
    """Both: clocks that run apart, and holders that lose their path."""
    clocks_apart(cluster)
    holders_lose_their_path(cluster)


def watched(cluster: Cluster) -> None:
    """Nobody sets a leader back knowing better: to an earlier version than the same task has read last."""
    read: dict[tuple[Any, int], int] = {}
    for host in cluster.hosts:
        for path in host.machine.paths.values():
            path._answer = _watching(path._answer, cluster, read)  # type: ignore[method-assign]


def _watching(answer: Any, cluster: Cluster, read: dict[tuple[Any, int], int]) -> Any:
    layout = cluster.layout

    def watching(io: Any) -> None:
        area, sector = layout.where(io.step.offset)
        if area and not sector and not io.ended and not io.error:
            if isinstance(io.step, Write):
                lver, last = Leader.unpack(io.step.data).lver, read.get((io.task, area), 0)
                if lver < last:
                    raise Violation("leaders grow", f"{io.task.name} set r{area} back from version {last} to {lver}")
            else:
                read[io.task, area] = Leader.unpack(io.value).lver
        answer(io)

    return watching


def twins(cluster: Cluster) -> None:
    """The second host has the first one's host id and name: it need not wait for it, and comes a minute later."""
    first, second = cluster.hosts
    second.host_id, second.name = first.host_id, first.name
    cluster.fixed_names = True
    on_boot = second.machine.on_boot
    assert on_boot is not None
    second.machine.on_boot = lambda machine: cluster.world.after(60.0, lambda _: on_boot(machine))


def old_leaders_return(cluster: Cluster) -> None:
    """Every few seconds a leader record of the past lands once more, from when only two hosts had blocks."""
    random = cluster.world.stream("old leaders")
    sector = cluster.layout.geometry.sector_size
    place = cluster.layout.place(1).offset
    past: list[bytes] = []

    def remember(_: Any) -> None:
        past.append(bytes(cluster.disk.view[place : place + sector]))
        del past[:-40]
        cluster.world.after(0.25, remember)

    def again(_: Any) -> None:
        if past:
            old = Leader.unpack(random.choice(past))
            cluster.disk.put(place, old.changed(num_hosts=2).sector(sector))
        cluster.world.after(random.uniform(1, 6), again)

    remember(None)
    cluster.world.after(random.uniform(15, 45), again)


def frozen_whole(cluster: Cluster) -> None:
    """The first host is a virtual machine that is stopped, its clock and its watchdog with it, while it holds r1.

    When it runs on others have taken over; its next renewals must show that, and its clients be stopped.
    """
    host = cluster.hosts[0]
    machine, world = host.machine, cluster.world
    #: enough for the others to take over, and from the end of it until the holder must be gone
    stop_s = 3 * host.timing.host_dead
    notice_s = 2 * host.timing.renewal_interval + 2

    def look(_: Any) -> None:
        holding = next((h for h in world.judge.holdings if h.machine is machine and h.exclusive), None)
        if holding is None:
            world.after(0.1, look)
            return
        _stop_whole(machine)
        world.after(stop_s, wake, holding)

    def wake(holding: Any) -> None:
        _run_whole(machine)
        world.after(notice_s, check, holding)

    def check(holding: Any) -> None:
        if holding in world.judge.holdings and _was_taken(cluster, host, holding.token):
            raise Violation("notices that it stood still", f"{holding} goes on though others took the lease")
        world.after(5.0, look)

    world.after(30.0, look)


def _was_taken(cluster: Cluster, host: Host, token: int) -> bool:
    place = cluster.layout.place(1).offset
    return Leader.unpack(cluster.disk.view[place : place + 512]).lver > token


def _stop_whole(machine: Machine) -> None:
    machine.clock.stand_still(machine.world.now)
    machine.watchdog.armed = False
    for process in machine.processes:
        process.pause()


def _run_whole(machine: Machine) -> None:
    machine.clock.run_on(machine.world.now)
    machine.watchdog.armed = True
    machine.watchdog.go_on()
    for process in list(machine.processes):
        process.run_on()
