"""A GGUF file spelled out, so that each word of it can be made a lie: counts, lengths, types, sizes and offsets.

magic, u32 version, u64 tensors, u64 keys | key, u32 type, value ... | name, u32 axes, u64 sizes, u32 type, u64 offset
... | data. Source: the GGUF specification, version 3; shares no code with fewbit.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import gguf

U32, I32, F32, BOOL, STRING, ARRAY, U64, F64 = 4, 5, 6, 7, 8, 9, 10, 12
_FORMS = {U32: "<I", I32: "<i", F32: "<f", BOOL: "<B", U64: "<Q", F64: "<d"}
#: Ids of types of tensors by name.
KINDS = {kind.name: int(kind) for kind in gguf.GGMLQuantizationType}


@dataclass(slots=True)
class Tensor:
    """A tensor's entry; sizes as the file has them, the contiguous axis first."""

    name: str
    sizes: list[int]
    kind: int
    data: bytes
    #: Another offset than the one that it has.
    offset: int | None = None
    #: Another number of axes, and another length of the name, than they have.
    axes: int | None = None
    length: int | None = None


@dataclass(slots=True)
class Value:
    """A key with its value; `raw` stands for the bytes of a value that is none."""

    key: str
    kind: int
    value: Any = None
    raw: bytes | None = None
    length: int | None = None


@dataclass(slots=True)
class GgufText:
    """A whole file."""

    values: list[Value]
    tensors: list[Tensor]
    magic: bytes = b"GGUF"
    version: int = 3
    tensor_count: int | None = None
    key_count: int | None = None
    alignment: int = field(default=32)

    def written(self) -> bytes:
        """Return the bytes of the file."""
        counts = (
            len(self.tensors) if self.tensor_count is None else self.tensor_count,
            len(self.values) if self.key_count is None else self.key_count,
        )
        head = self.magic + struct.pack("<I", self.version) + struct.pack("<QQ", *(count % 2**64 for count in counts))
        head += b"".join(_value(own) for own in self.values)
        offset, data = 0, b""
        for own in self.tensors:
            head += _text(own.name, own.length)
            sizes = [size % 2**64 for size in own.sizes]
            head += struct.pack("<I", len(sizes) if own.axes is None else own.axes)
            head += struct.pack(f"<{len(sizes)}Q", *sizes)
            head += struct.pack("<IQ", own.kind, (offset if own.offset is None else own.offset) % 2**64)
            data += own.data + b"\0" * (-len(own.data) % self.alignment)
            offset = len(data)
        return head + b"\0" * (-len(head) % self.alignment) + data


def _text(text: str, length: int | None = None) -> bytes:
    content = text.encode("utf-8", errors="surrogatepass")
    return struct.pack("<Q", (len(content) if length is None else length) % 2**64) + content


def _value(own: Value) -> bytes:
    return _text(own.key, own.length) + struct.pack("<I", own.kind) + (_raw(own) if own.raw is None else own.raw)


def _raw(own: Value) -> bytes:
    if own.kind == STRING:
        return _text(own.value)
    if own.kind != ARRAY:
        return struct.pack(_FORMS[own.kind], own.value)
    kind, elements = own.value
    spelled = b"".join(_text(one) if kind == STRING else struct.pack(_FORMS[kind], one) for one in elements)
    return struct.pack("<IQ", kind, len(elements)) + spelled
