"""The header of a GGUF file: what it claims, checked against the bytes that are there before any library reads them.

magic, u32 version, u64 tensors, u64 keys | key, u32 type, value ... | name, u32 axes, u64 sizes, u32 type, u64 offset
... | data. A string is a u64 length and bytes. Source: the GGUF specification, version 3.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from fewbit.checkpoints.tensor_name import require_plain
from fewbit.errors import CheckpointError, MissingExtraError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
#: Offsets are multiples of it; a file may set its own.
USUAL_ALIGNMENT = 32
_LARGEST_ALIGNMENT = 1 << 20
#: Numbers and strings in all arrays together. The gguf library spends 650 bytes on each; vocabularies with their
#: scores, types and merges have up to 1.3 million.
MOST_ELEMENTS = 1 << 21
MOST_TENSORS = 1 << 18
MOST_KEYS = 1 << 16
LONGEST_KEY = 65_535
#: A tokenizer.json may stand in a value.
LONGEST_TEXT = 256 << 20
_MOST_AXES = 4
#: struct formats of the numbers by the type ids of the format; 7 is a bool, 8 a string, 9 an array.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY, _UINT32 = 7, 8, 9, 4
#: The least bytes that a key with its value and a tensor's entry take.
_LEAST_KEY, _LEAST_TENSOR = 8 + 1 + 4 + 1, 8 + 1 + 4 + 8 + 4 + 8
_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of the file."""

    name: str
    #: As NumPy has it: the contiguous axis last.
    shape: tuple[int, ...]
    #: Type by the name that GGUF has for it, such as `Q4_K`.
    kind: str
    #: Bytes from the beginning of the data.
    offset: int
    nbytes: int
    #: Which of several files it is in.
    part: int = 0


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a file says of itself."""

    version: int
    #: Numbers, bools and texts by key; arrays are counted and stand here as their length.
    values: Mapping[str, int | float | bool | str | ArrayLength]
    tensors: tuple[GgufTensor, ...]
    #: Where the data begin in the file.
    data_start: int
    #: The other files of a model in several, and where data begin in each.
    others: tuple[tuple[Path, int], ...] = ()


class ArrayLength(int):
    """How many elements an array has that is not kept."""

    #: The id of their type.
    kind: int
    #: Where they begin in the file.
    position: int

    def __new__(cls, count: int, kind: int = _STRING, position: int = 0) -> ArrayLength:
        """Return the length of an array that lies at `position`."""
        self = super().__new__(cls, count)
        self.kind, self.position = kind, position
        return self

    def __repr__(self) -> str:
        return f"array of {int(self)}"


def read_gguf_header(path: Path) -> GgufHeader:
    """Return the header of the GGUF file at `path`; its data are not read.

    Raises:
        CheckpointError: no such file, or one that does not hold what it says.

    """
    try:
        with path.open("rb") as file:
            return parse_gguf_header(file, path.stat().st_size)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from error


def parse_gguf_header(file: BinaryIO, size: int) -> GgufHeader:
    """Return what a file of `size` bytes says of itself.

    Raises:
        CheckpointError: it contradicts itself or its size; the message names no file.

    """
    reader = _Reader(file, size)
    version = _version(reader)
    tensor_count, key_count = reader.unpack("QQ", "the counts of tensors and keys")
    _require_room("tensors", tensor_count, _LEAST_TENSOR, MOST_TENSORS, reader.left)
    _require_room("keys", key_count, _LEAST_KEY, MOST_KEYS, reader.left)
    values = dict(_values(reader, key_count))
    alignment = _alignment(values.get("general.alignment", USUAL_ALIGNMENT))
    sizes = _type_sizes()
    tensors: dict[str, GgufTensor] = {}
    for number in range(tensor_count):
        tensor = _tensor(reader, number, sizes)
        if tensor.name in tensors:
            raise CheckpointError(f"names tensor {tensor.name} twice; which of them counts is not said")
        tensors[tensor.name] = tensor
    data_start = -(-reader.position // alignment) * alignment
    _require_inside(list(tensors.values()), alignment, size - data_start)
    return GgufHeader(version, values, tuple(tensors.values()), data_start)


class _Reader:
    """Reads forward, never past the end, and never more at once than the file has left."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self.position = 0

    @property
    def left(self) -> int:
        """Bytes that are still to come."""
        return max(0, self._size - self.position)

    def take(self, count: int, what: str) -> bytes:
        """Return the next `count` bytes."""
        if count > self.left:
            raise CheckpointError(
                f"claims {count} bytes for {what} and {self.left} are left; is the download complete?"
            )
        content = self._file.read(count)
        if len(content) != count:
            raise CheckpointError(f"ended while {what} was read; is it being written?")
        self.position += count
        return content

    def unpack(self, form: str, what: str) -> tuple[Any, ...]:
        """Return the next numbers; `form` is that of struct."""
        return struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}"), what))

    def text(self, longest: int, what: str) -> str:
        """Return the next string."""
        (length,) = self.unpack("Q", f"the length of {what}")
        if length > self.left:
            raise CheckpointError(f"claims {length} bytes for {what} and {self.left} are left")
        if length > longest:
            raise CheckpointError(f"claims {length} bytes for {what}; more than {longest} are not read")
        try:
            return self.take(length, what).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"has {what} that is not UTF-8: {error}") from error


def _version(reader: _Reader) -> int:
    if reader.left < len(MAGIC) or reader.take(len(MAGIC), "the magic number") != MAGIC:
        raise CheckpointError("is not a GGUF file; a model is a Hugging Face folder, a .gguf file or smollm2")
    (version,) = reader.unpack("I", "the version")
    if version & 0xFFFF == 0:
        raise CheckpointError(
            "is GGUF in big-endian byte order; convert it with gguf-convert-endian of the gguf package"
        )
    if version not in VERSIONS:
        raise CheckpointError(f"is GGUF of version {version}; versions {VERSIONS[0]} and {VERSIONS[1]} are read")
    return int(version)


def _require_room(what: str, count: int, least: int, most: int, left: int) -> None:
    if count * least > left:
        raise CheckpointError(f"claims {count} {what}, which take {count * least} bytes at least, and {left} are left")
    if count > most:
        raise CheckpointError(f"claims {count} {what}; more than {most} are not read")


def _values(reader: _Reader, count: int) -> Iterator[tuple[str, Any]]:
    seen: set[str] = set()
    elements = 0
    for number in range(count):
        key = reader.text(LONGEST_KEY, f"key {number + 1} of {count}")
        if not key or not key.isprintable():
            raise CheckpointError(f"has the key {key!r:.80}, which is empty or does not print")
        if key in seen:
            raise CheckpointError(f"has the key {key!r} twice; which of them counts is not said")
        seen.add(key)
        (kind,) = reader.unpack("I", f"the type of {key!r}")
        if kind == _ARRAY:
            value: Any = _array(reader, key, MOST_ELEMENTS - elements)
            elements += value
        else:
            value = _value(reader, kind, key)
        yield key, value


def _value(reader: _Reader, kind: int, key: str) -> int | float | bool | str:
    if kind == _STRING:
        return reader.text(LONGEST_TEXT, f"the text of {key!r}")
    if kind == _BOOL:
        (value,) = reader.unpack("B", repr(key))
        if value > 1:
            raise CheckpointError(f"has {value} as the value of {key!r}, which is a bool and has to be 0 or 1")
        return bool(value)
    if kind not in _NUMBERS:
        raise CheckpointError(f"has the key {key!r} of type {kind}, which GGUF does not have")
    return reader.unpack(_NUMBERS[kind], repr(key))[0]  # type: ignore[no-any-return]


def _array(reader: _Reader, key: str, most: int) -> ArrayLength:
    """Pass over an array and return its length; its strings have to be UTF-8 and its bools 0 or 1."""
    kind, count = reader.unpack("IQ", f"type and length of the array {key!r}")
    if kind not in _NUMBERS and kind not in (_BOOL, _STRING):
        kinds = "arrays" if kind == _ARRAY else f"type {kind}"
        raise CheckpointError(f"has an array {key!r} of {kinds}, which is not read")
    length = ArrayLength(count, kind, reader.position)
    width = {_STRING: 8, _BOOL: 1}.get(kind) or struct.calcsize(f"<{_NUMBERS[kind]}")
    _require_room(f"elements of the array {key!r}", count, width, most, reader.left)
    if kind == _STRING:
        for number in range(count):
            reader.text(LONGEST_TEXT, f"element {number} of {key!r}")
        return length
    for start in range(0, count * width, _AT_ONCE):
        content = reader.take(min(_AT_ONCE, count * width - start), repr(key))
        if kind == _BOOL and max(content) > 1:
            raise CheckpointError(f"has {max(content)} in the array {key!r}, which is of bools and has to be 0 or 1")
    return length


def _alignment(value: object) -> int:
    sane = type(value) is int and 8 <= value <= _LARGEST_ALIGNMENT and value & (value - 1) == 0
    if not sane:
        raise CheckpointError(
            f"has general.alignment {value!r}; a power of two from 8 to {_LARGEST_ALIGNMENT} is read, 32 is usual"
        )
    return int(value)  # type: ignore[call-overload, no-any-return]


def _type_sizes() -> dict[int, tuple[str, int, int]]:
    """Return name, numbers a block and bytes a block of each type of tensor that the gguf library knows, by id."""
    try:
        from gguf import GGML_QUANT_SIZES
    except ImportError as error:
        raise MissingExtraError("GGUF files need: pip install 'fewbit[transformers]'") from error
    return {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


def _tensor(reader: _Reader, number: int, sizes: Mapping[int, tuple[str, int, int]]) -> GgufTensor:
    name = reader.text(LONGEST_KEY, f"the name of tensor {number + 1}")
    require_plain(name)
    (axes,) = reader.unpack("I", f"the number of axes of {name}")
    if not 1 <= axes <= _MOST_AXES:
        raise CheckpointError(f"gives tensor {name} {axes} axes; GGUF has 1 to {_MOST_AXES}")
    shape = tuple(reversed(reader.unpack(f"{axes}Q", f"the shape of {name}")))
    kind, offset = reader.unpack("IQ", f"type and offset of {name}")
    if kind not in sizes:
        raise CheckpointError(f"has tensor {name} of type {kind}, which the installed gguf package does not know")
    form, block, block_bytes = sizes[kind]
    if prod(size or 1 for size in shape) >= 1 << 60:
        raise CheckpointError(f"gives tensor {name} the shape {list(shape)}, more numbers than any file holds")
    if shape[-1] % block:
        raise CheckpointError(
            f"gives tensor {name} rows of {shape[-1]} numbers, which is not a multiple of the {block} "
            f"of a block of {form}"
        )
    return GgufTensor(name, shape, form, offset, prod(shape) // block * block_bytes)


def _require_inside(tensors: list[GgufTensor], alignment: int, data_bytes: int) -> None:
    """Raise unless all tensors lie inside the data, each on bytes of its own."""
    end, last = 0, ""
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset % alignment:
            raise CheckpointError(
                f"puts tensor {tensor.name} at byte {tensor.offset}, which is not a multiple of {alignment}"
            )
        if tensor.offset + tensor.nbytes > data_bytes:
            raise CheckpointError(
                f"puts tensor {tensor.name} at bytes {tensor.offset} to {tensor.offset + tensor.nbytes} of its data, "
                f"which have {max(0, data_bytes)}; is the download complete?"
            )
        if tensor.nbytes and tensor.offset < end:
            raise CheckpointError(f"puts tensor {tensor.name} at byte {tensor.offset}, over the bytes of {last}")
        if tensor.nbytes:
            end, last = tensor.offset + tensor.nbytes, tensor.name
