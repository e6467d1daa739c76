"""Every timeout from two numbers: the table of ondisk.md section 3."""

from __future__ import annotations

import pytest

from paxos.timing import CLOCK_RATE_ERROR, MAX_IO_TIMEOUT, RENEWAL_PAUSE, Timing, judging_io_timeout

#: name -> (formula, io=1, io=10), fire = 60
TABLE = {
    "renewal_interval": (2, 20),
    "renewal_warn": (6, 60),
    "renewal_fail": (8, 80),
    "host_dead": (68, 140),
    "renewal_read": (1, 10),
    "renewal_read_extend": (1, 10),
    "renewal_write": (68, 140),
    "join_settle": (2, 20),
    "bitmap_life": (6, 60),
    "kill_grace": (40, 40),
}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("column", [0, 1], ids=["io 1", "io 10"])
def test_the_constants_are_those_of_the_format(name: str, column: int) -> None:
    assert getattr(Timing((1, 10)[column]), name) == TABLE[name][column]


@pytest.mark.parametrize("fire", [5, 10, 29, 30, 60, 120])
@pytest.mark.parametrize("io", [1, 2, 5, 10, 30])
def test_a_host_is_reset_before_others_may_call_it_dead(io: int, fire: int) -> None:
    """The argument that all rests on: 8 io until feeding stops, fire until the reset, then host_dead."""
    timing = Timing(io, fire)
    assert timing.renewal_fail + fire == timing.host_dead
    assert timing.sigkill < timing.host_dead or fire == 0
    assert timing.renewal_warn < timing.renewal_fail <= timing.sigkill


@pytest.mark.parametrize(("io", "fire"), [(1, 60), (1, 200), (2, 60), (3, 60), (5, 60), (10, 60), (60, 60), (255, 60)])
def test_feeding_ends_early_enough_for_clocks_that_run_apart(io: int, fire: int) -> None:
    """A judge whose clock is faster counts host_dead too soon by at most this share of the time counted."""
    timing = Timing(io, fire)
    assert timing.feed_margin >= CLOCK_RATE_ERROR * timing.host_dead
    assert timing.feed_margin < timing.renewal_fail - timing.renewal_interval - RENEWAL_PAUSE


@pytest.mark.parametrize("io", [1, 2, 5, 10, 30])
def test_a_pause_is_suspected_before_a_lease_can_be_lost_by_it(io: int) -> None:
    timing = Timing(io)
    assert timing.renewal_interval < timing.pause_suspected < timing.host_dead


@pytest.mark.parametrize(
    ("stored", "own", "judged"),
    [
        (10, 5, 10),
        (5, 10, 5),
        (0, 10, 10),  # "if that is 0 use your own"
        (MAX_IO_TIMEOUT, 10, 255),
        (MAX_IO_TIMEOUT + 1, 10, 256),  # could not have been given: longer, never shorter
        (65535, 10, 65535),
    ],
)
def test_a_host_is_judged_by_its_own_io_timeout(stored: int, own: float, judged: float) -> None:
    assert judging_io_timeout(stored, own) == judged


def test_no_timing_without_an_io_timeout() -> None:
    with pytest.raises(AssertionError):
        Timing(0)
    with pytest.raises(AssertionError):
        Timing(10, -1)
