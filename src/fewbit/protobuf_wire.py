"""Fields of a protobuf message in the bytes of a file, one at a time, before a library makes objects of them.

key = number << 3 | wire type; of 0 a number, of 1 and 5 eight and four bytes, of 2 a length and as many bytes.
Source: the protobuf encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

#: Bits of the longest number.
_LONGEST = 64
_SIZES = {1: 8, 5: 4}


class Field(NamedTuple):
    """A field, and where its bytes are."""

    number: int
    wire: int
    begin: int
    end: int
    #: Of wire type 0.
    whole: int = 0


def fields(content: bytes, begin: int = 0, end: int | None = None) -> Iterator[Field]:
    """Yield the fields of the message in `content[begin:end]`.

    Raises:
        ValueError: there is no message.

    """
    place, end = begin, len(content) if end is None else end
    while place < end:
        key, place = varint(content, place, end)
        number, wire, first = key >> 3, key & 7, place
        if wire == 0:
            whole, place = varint(content, place, end)
            yield Field(number, wire, first, place, whole)
            continue
        size = _SIZES.get(wire)
        if wire == 2:
            size, first = varint(content, place, end)
        if size is None or size > end - first:
            raise ValueError(f"field {number} of wire type {wire} at byte {place} reaches beyond the end")
        place = first + size
        yield Field(number, wire, first, place)


def varint(content: bytes, place: int, end: int) -> tuple[int, int]:
    """Return the number at `place`, and where it ends.

    >>> varint(bytes([172, 2]), 0, 2)
    (300, 2)

    Raises:
        ValueError: it has more than 64 bits, or goes on behind `end`.

    """
    value = 0
    for shift in range(0, _LONGEST, 7):
        if place >= end:
            raise ValueError(f"a number goes on behind byte {end}, the last one")
        byte = content[place]
        value |= (byte & 127) << shift
        place += 1
        if byte < 128:
            return value, place
    raise ValueError(f"a number of more than {_LONGEST} bits at byte {place}")
