"""What a GGUF block is made of: runs of bytes, each of which holds a part of some numbers of the block.

Fields are named arrays (blocks, n): uint8 patterns, or float32 for float16 numbers. A section puts its part of one into
bytes, and takes it back; parts of patterns that sections share are disjoint bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


class Section(Protocol):
    """A run of bytes of a block."""

    @property
    def field(self) -> str:
        """Name of the field of which it holds a part."""

    @property
    def count(self) -> int:
        """How many numbers the field has."""

    @property
    def size(self) -> int:
        """Bytes."""

    def put(self, values: Any) -> Any:
        """Return the bytes (blocks, size) for a field."""

    def take(self, raw: Any) -> Any:
        """Return what the bytes say of the field."""


@dataclass(frozen=True, slots=True)
class Half:
    """One float16."""

    field: str
    count: int = 1
    size: int = 2

    def put(self, values: Any) -> Any:
        """Return its bytes, little-endian."""
        return np.ascontiguousarray(values, "<f2").view(np.uint8)

    def take(self, raw: Any) -> Any:
        """Return it as float32."""
        return np.ascontiguousarray(raw).view("<f2").astype(np.float32)


@dataclass(frozen=True, slots=True)
class Planes:
    """Some bits of each number, those of several numbers in a byte.

    In runs of `run` numbers byte j holds the number j in its lowest bits, and above it j + `run` * bits / 8, and so on.
    """

    field: str
    #: How many numbers the field has.
    count: int
    #: Bits of each that are here.
    bits: int
    run: int
    #: Which bits: those from here on.
    first: int = 0

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * self.bits // 8

    def put(self, values: Any) -> Any:
        """Return the bits of the patterns `values`."""
        part = (values >> self.first & ((1 << self.bits) - 1)).reshape(len(values), -1, 8 // self.bits, self._apart)
        shifted = part.astype(np.uint8) << self._shifts
        return np.bitwise_or.reduce(shifted, axis=2).reshape(len(values), self.size)

    def take(self, raw: Any) -> Any:
        """Return patterns that have these bits, and no others."""
        part = raw.reshape(len(raw), -1, 1, self._apart) >> self._shifts & np.uint8((1 << self.bits) - 1)
        return (part << np.uint8(self.first)).reshape(len(raw), self.count)

    @property
    def _apart(self) -> int:
        return self.run * self.bits // 8

    @property
    def _shifts(self) -> Any:
        return np.arange(0, 8, self.bits, dtype=np.uint8)[:, None]


@dataclass(frozen=True, slots=True)
class Bytes:
    """One byte for each number."""

    field: str
    count: int
    #: Of signed numbers, whose patterns count from the lowest.
    signed: bool = False

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count

    def put(self, values: Any) -> Any:
        """Return the patterns, signed ones as two's complements."""
        return values ^ np.uint8(0x80) if self.signed else values

    def take(self, raw: Any) -> Any:
        """Return the patterns."""
        return self.put(raw)


@dataclass(frozen=True, slots=True)
class SixBits:
    """Eight scales, then eight minima, of six bits each in twelve bytes, as Q4_K and Q5_K have them."""

    field: str
    count: int = 16
    size: int = 12

    def put(self, values: Any) -> Any:
        """Return the first four of both whole, and the last four of both by nibble and, above the first, two bits."""
        first, last = values[:, [0, 1, 2, 3, 8, 9, 10, 11]], values[:, [4, 5, 6, 7, 12, 13, 14, 15]]
        low = last & 15
        return np.concatenate([first | last >> 4 << 6, low[:, :4] | low[:, 4:] << 4], axis=1)

    def take(self, raw: Any) -> Any:
        """Return the sixteen numbers."""
        first, nibbles = raw[:, :8] & 63, np.concatenate([raw[:, 8:] & 15, raw[:, 8:] >> 4], axis=1)
        last = nibbles | raw[:, :8] >> 6 << 4
        return np.concatenate([first[:, :4], last[:, :4], first[:, 4:], last[:, 4:]], axis=1)


def put_all(sections: tuple[Section, ...], fields: Mapping[str, Any]) -> Any:
    """Return the bytes (blocks, n) of `fields`."""
    return np.concatenate([section.put(fields[section.field]) for section in sections], axis=1)


def take_all(sections: tuple[Section, ...], raw: Any) -> dict[str, Any]:
    """Return the fields in bytes (blocks, n)."""
    fields: dict[str, Any] = {}
    start = 0
    for section in sections:
        part = section.take(raw[:, start : start + section.size])
        fields[section.field] = fields[section.field] | part if section.field in fields else part
        start += section.size
    return fields
