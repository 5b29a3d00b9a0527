"""The header of a safetensors file: what it claims, checked against the bytes that are there.

u64 length | JSON {name: {dtype, shape, data_offsets}} | data. Nothing is allocated on the word of the header.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fewbit.checkpoints.json_object import parse_object
from fewbit.checkpoints.tensor_name import RESERVED, require_plain
from fewbit.errors import CheckpointError
from fewbit.interfaces import BYTES, StoredTensor

#: Type names of the file format, with the names that fewbit and NumPy use.
_TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
    "BOOL": "bool",
}  # fmt: skip
#: The limit of the safetensors library.
LARGEST_HEADER = 100_000_000
#: More than NumPy has.
_MOST_AXES = 32
_PREFIX = 8


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """A tensor, and where its bytes lie in the data that follows the header."""

    tensor: StoredTensor
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What a file holds, in the order of its bytes."""

    entries: tuple[StoredBytes, ...]
    #: Where the data begin in the file.
    data_start: int


def read_header(path: Path) -> SafetensorsHeader:
    """Return the header of the file at `path`; the safetensors library checks it once more.

    Raises:
        CheckpointError: no such file, or one that does not hold what it says.

    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = header_length(file.read(_PREFIX), size)
            header = parse_header(file.read(length), size - _PREFIX - length)
        with safe_open(path, framework="np"):
            return header
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (CheckpointError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error


def create_empty(path: Path, stored: Sequence[StoredTensor]) -> dict[str, int]:
    """Make a file with room for tensors and return where each begins; larger types first, so that all are aligned."""
    head, begins, size = layout(stored)
    path.write_bytes(head)
    os.truncate(path, size)
    return begins


def layout(stored: Sequence[StoredTensor]) -> tuple[bytes, dict[str, int], int]:
    """Return the first bytes of a file with room for tensors, where each of them begins, and the size of the file."""
    names = {own: word for word, own in _TYPES.items()}
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # "format" tells transformers how to read the file
    begins, end = {}, 0
    for own in sorted(stored, key=lambda own: (-BYTES[own.dtype], own.name)):
        begins[own.name], end = end, end + own.nbytes
        offsets = [begins[own.name], end]
        table[own.name] = {"dtype": names[own.dtype], "shape": list(own.shape), "data_offsets": offsets}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _PREFIX)
    head = len(text).to_bytes(_PREFIX, "little") + text
    return head, {name: len(head) + begin for name, begin in begins.items()}, len(head) + end


def header_length(prefix: bytes, size: int) -> int:
    """Return the length that the first eight bytes of a file of `size` bytes give its header."""
    if len(prefix) < _PREFIX:
        raise CheckpointError(f"it has {size} bytes, fewer than the {_PREFIX} that give the length of its header")
    length = int.from_bytes(prefix, "little")
    if length > size - _PREFIX:
        raise CheckpointError(
            f"its header claims {length} bytes and {size - _PREFIX} follow; is the download complete?"
        )
    if length > LARGEST_HEADER:
        raise CheckpointError(f"its header claims {length} bytes, more than the {LARGEST_HEADER} that are read")
    return length


def parse_header(content: bytes, data_bytes: int) -> SafetensorsHeader:
    """Return what the JSON `content` says of `data_bytes` bytes of data.

    Raises:
        CheckpointError: it contradicts itself or those bytes; the message names no file.

    """
    try:
        table = parse_object(content)
    except CheckpointError as error:
        raise CheckpointError(f"its header {error}") from error
    metadata = table.pop(RESERVED, None)
    if metadata is not None and not _is_text_to_text(metadata):
        raise CheckpointError(f"its {RESERVED} is not an object of texts")
    entries = sorted((_entry(name, entry) for name, entry in table.items()), key=lambda e: (e.begin, e.end))
    position, last = 0, "the header"
    for entry in entries:
        if entry.begin != position:
            what = "overlaps" if entry.begin < position else "leaves a gap after"
            raise CheckpointError(f"tensor {entry.tensor.name} begins at byte {entry.begin} and {what} {last}")
        position, last = entry.end, entry.tensor.name
    if position != data_bytes:
        raise CheckpointError(
            f"its tensors take {position} bytes and {data_bytes} are there; is the download complete?"
        )
    return SafetensorsHeader(tuple(entries), _PREFIX + len(content))


def _entry(name: str, entry: Any) -> StoredBytes:
    require_plain(name)
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"tensor {name} has no dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in _TYPES:
        raise CheckpointError(f"tensor {name} has type {kind!r}; the types that fewbit reads are {', '.join(_TYPES)}")
    if not _are_sizes(shape) or len(shape) > _MOST_AXES:
        raise CheckpointError(f"tensor {name} has shape {shape!r:.80}, which is not a list of sizes")
    if prod(size or 1 for size in shape) >= 1 << 60:
        raise CheckpointError(f"tensor {name} has shape {shape}, more numbers than any file holds")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"tensor {name} has data_offsets {offsets!r:.80}, which are not a begin and an end")
    stored = StoredTensor(name, _TYPES[kind], tuple(shape))
    if stored.nbytes != offsets[1] - offsets[0]:
        raise CheckpointError(
            f"tensor {name} of shape {shape} and type {kind} takes {stored.nbytes} bytes, "
            f"its data_offsets give it {offsets[1] - offsets[0]}"
        )
    return StoredBytes(stored, *offsets)


def _are_sizes(value: Any) -> bool:
    """Whether `value` is a list of integers that are not negative; `true` is none."""
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 1 << 60 for size in value)


def _is_text_to_text(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


assert set(_TYPES.values()) == BYTES.keys()
