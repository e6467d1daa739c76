"""The format's CRC-32C: against its definition, against crcmod, one record and many at once."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import crcmod
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paxos import checksum
from paxos.checksum import INITIAL, POLYNOMIAL, crc, crc_rows

by_crcmod = crcmod.mkCrcFun(POLYNOMIAL, initCrc=INITIAL, rev=True, xorOut=0)


def by_definition(data: bytes, register: int = INITIAL) -> int:
    """Bit by bit, as the polynomial says."""
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
    return register


def test_the_values_the_format_is_known_by() -> None:
    assert crc(b"123456789") == 0xE8C7BB34
    assert crc(b"") == 0xFFFFFFFE


@given(st.binary(max_size=300))
def test_one_record_agrees_with_definition_and_crcmod(data: bytes) -> None:
    assert crc(data) == by_definition(data) == by_crcmod(data)
    assert crc(memoryview(data)) == crc(data)


def load_with(crc32c: object, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The checksum module as it is when `import crc32c` gives this (None: is not installed)."""
    package = None
    if crc32c is not None:
        package = ModuleType("crc32c")
        package.crc32c = crc32c  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "crc32c", package)
    spec = importlib.util.spec_from_file_location("checksum_with_another_engine", checksum.__file__)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_same_numbers_with_and_without_the_crc32c_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def usual_crc32c(data: bytes, value: int = 0) -> int:
        return by_definition(data, value ^ 0xFFFFFFFF) ^ 0xFFFFFFFF

    assert usual_crc32c(b"123456789") == 0xE3069283
    with_package = load_with(usual_crc32c, monkeypatch)
    without = load_with(None, monkeypatch)
    for data in (b"", b"123456789", bytes(48), bytes(range(168))):
        assert with_package.crc(data) == without.crc(data) == by_definition(data)


@pytest.mark.parametrize("length", [0, 1, 8, 48, 168, 200])
@pytest.mark.parametrize("count", [0, 1, 2, 2000])
def test_many_records_at_once_agree_with_one_by_one(length: int, count: int) -> None:
    rows = np.random.default_rng(length * 7 + count).integers(0, 256, (count, length), np.uint8)
    sums = crc_rows(rows)
    assert sums.dtype == np.uint32 and sums.shape == (count,)
    assert sums.tolist() == [crc(row.tobytes()) for row in rows]


def test_rows_may_be_columns_of_a_wider_area() -> None:
    area = np.random.default_rng(1).integers(0, 256, (20, 512), np.uint8)
    assert crc_rows(area[3:, :168]).tolist() == [crc(row[:168].tobytes()) for row in area[3:]]
