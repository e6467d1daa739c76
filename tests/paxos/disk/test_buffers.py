"""Buffers are aligned, apart from each other, used again when given back, and never before."""

from __future__ import annotations

import itertools

import pytest

from paxos.disk.buffers import HUGE_PAGE, PAGE, Buffer, Pool


def overlap(one: Buffer, other: Buffer) -> bool:
    return one.address < other.address + other.size and other.address < one.address + one.size


@pytest.mark.parametrize("length", [512, PAGE, PAGE + 512, 1 << 20, HUGE_PAGE, 8 << 20])
def test_a_buffer_is_page_aligned_and_long_enough(length: int) -> None:
    buffer = Pool().take(length)
    assert buffer.address % PAGE == 0
    assert buffer.size >= length


@pytest.mark.parametrize("length", [1 << 20, HUGE_PAGE, 8 << 20])
def test_a_large_buffer_lies_in_as_few_huge_pages_as_it_can(length: int) -> None:
    first = Pool().take(length)
    assert first.address // HUGE_PAGE == (first.address + min(length, HUGE_PAGE) - 1) // HUGE_PAGE


def test_buffers_of_all_sizes_stay_apart() -> None:
    pool = Pool()
    lengths = [512, 1 << 20, 512, 64 << 10, 1 << 20, 1 << 20, 128 << 10, 4 << 20] * 3
    buffers = [pool.take(length) for length in lengths]
    assert not any(overlap(one, other) for one, other in itertools.combinations(buffers, 2))


def test_a_buffer_is_used_again_once_it_is_given_back() -> None:
    pool = Pool()
    first = pool.take(512)
    assert pool.take(512) is not first
    first.give_back()
    assert pool.take(512) is first


def test_what_is_written_to_the_memory_is_seen_in_the_view() -> None:
    buffer = Pool().take(512)
    buffer.memory[:3] = b"abc"
    assert bytes(buffer.view[:3]) == b"abc"
    assert buffer.view.readonly
