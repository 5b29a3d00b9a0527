"""How many fields and nodes an ONNX file has, counted in its bytes before a library makes objects of them.

A node may be two bytes of a file and thousands of memory. Source: the field numbers of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from fewbit.errors import SourceError
from fewbit.protobuf_wire import Field, fields

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
        for field in _sound(content, begin, end):
            takes += _OF_A_FIELD
            if takes > most:
                raise SourceError(
                    f"{name} has {len(content)} bytes and so many nodes and fields that they would take more than "
                    f"{TIMES} times as many and {BESIDE} of memory; is it an ONNX model?"
                )
            if field.wire == 2 and field.number in message.inside:
                if depth >= _DEEPEST:
                    raise SourceError(f"{name} is not read: its graphs nest deeper than {_DEEPEST} messages")
                waiting.append((message.inside[field.number], field.begin, field.end, depth + 1))


def _sound(content: bytes, begin: int, end: int) -> Iterator[Field]:
    """Yield the fields up to the first nonsense."""
    with suppress(ValueError):
        yield from fields(content, begin, end)
