"""The golden images: areas written by the reference, and what `vectors.json` says is in them."""

from __future__ import annotations

import functools
import hashlib
import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paxos.geometry import Geometry

FOLDER = Path(__file__).parents[1] / "data" / "vectors"


@dataclass(frozen=True)
class Image:
    """One golden image. `facts`: its entry in vectors.json."""

    facts: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.facts["name"])

    @property
    def kind(self) -> str:
        return str(self.facts["kind"])

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.facts["sector_size"], self.facts["align_size"])

    @property
    def data(self) -> bytes:
        return _uncompressed(self.facts["file"], self.facts["sha256"])

    def records(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Every record (of one type); runs of equal ones are spelled out, with host id and offset of each."""
        spelled = []
        for record in self.facts["records"]:
            for number in range(record.get("repeat", 1)):
                one = dict(record, offset=record["offset"] + number * self.geometry.sector_size)
                if "host_id" in record:
                    one["host_id"] = record["host_id"] + number
                spelled.append(one)
        return [record for record in spelled if kind in (None, record["type"])]


@functools.lru_cache(maxsize=8)
def _uncompressed(file: str, sha256: str) -> bytes:
    data = lzma.decompress((FOLDER / file).read_bytes())
    assert hashlib.sha256(data).hexdigest() == sha256
    return data


VECTORS: dict[str, Any] = json.loads((FOLDER / "vectors.json").read_text())
IMAGES = [Image(facts) for facts in VECTORS["images"]]


def image(name: str) -> Image:
    return next(one for one in IMAGES if one.name == name)


def raw_name(record: dict[str, Any], field: str) -> bytes:
    """The field of 48 bytes: its tail is given only where it is not zero."""
    if f"{field}_raw" in record:
        return bytes.fromhex(record[f"{field}_raw"])
    return str(record[field]).encode().ljust(48, b"\0")
