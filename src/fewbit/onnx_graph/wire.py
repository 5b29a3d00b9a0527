"""How many fields and nodes an ONNX file has, counted in its bytes before a library makes objects of them.

A node may be two bytes of a file and thousands of memory. key = number << 3 | wire type; of 2 a length and bytes.
Source: the protobuf encoding, and the field numbers of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fewbit.errors import SourceError

#: What a file may take in memory: so many times its bytes, and so many beside.
TIMES, BESIDE = 16, 64 << 20
#: Bytes of memory of a field, and of a node with its values.
_OF_A_FIELD, _OF_A_NODE = 200, 2000
_DEEPEST = 64


@dataclass(frozen=True, slots=True)
class _Message:
    """Which fields of a message are messages that are looked into, by number."""

    inside: Mapping[int, str]
    is_node: bool = False


_MESSAGES = {
    "model": _Message({7: "graph", 25: "function"}),
    "graph": _Message({1: "node"}),
    "function": _Message({7: "node"}),
    "node": _Message({5: "attribute"}, is_node=True),
    "attribute": _Message({6: "graph", 11: "graph"}),
}


def require_light(content: bytes, name: str) -> None:
    """Raise `SourceError` where the model in `content` would take memory out of proportion; `name` is for messages.

    What is no protobuf is left to the library.
    """
    most, takes = TIMES * len(content) + BESIDE, 0
    waiting = [("model", 0, len(content), 0)]
    while waiting:
        kind, begin, end, depth = waiting.pop()
        message = _MESSAGES[kind]
        takes += _OF_A_NODE if message.is_node else 0
        for number, first, last in _fields(content, begin, end):
            takes += _OF_A_FIELD
            if takes > most:
                raise SourceError(
                    f"{name} has {len(content)} bytes and so many nodes and fields that they would take more than "
                    f"{TIMES} times as many and {BESIDE} of memory; is it an ONNX model?"
                )
            if last is not None and number in message.inside:
                if depth >= _DEEPEST:
                    raise SourceError(f"{name} is not read: its graphs nest deeper than {_DEEPEST} messages")
                waiting.append((message.inside[number], first, last, depth + 1))


def _fields(content: bytes, place: int, end: int) -> Iterator[tuple[int, int, int | None]]:
    """Yield for each field its number, and where the bytes of one of wire type 2 begin and end; stop at nonsense."""
    while place < end:
        key, place = _varint(content, place, end)
        wire = key & 7
        if wire == 0:
            _, place = _varint(content, place, end)
            yield key >> 3, place, None
            continue
        size = {1: 8, 5: 4}.get(wire, -1)
        if wire == 2:
            size, place = _varint(content, place, end)
        if not 0 <= size <= end - place:
            return
        yield key >> 3, place, place + size if wire == 2 else None
        place += size


def _varint(content: bytes, place: int, end: int) -> tuple[int, int]:
    """Return a number and where it ends; beyond the end it is 0."""
    value = shift = 0
    while place < end and shift < 64:
        byte = content[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place
    return 0, end
