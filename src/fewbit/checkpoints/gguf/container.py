"""A GGUF file being written: metadata and the list of tensors first, then each tensor at its place as it comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.checkpoints.gguf.blocks import BLOCKS
from fewbit.checkpoints.gguf_header import read_gguf_header
from fewbit.checkpoints.gguf_parts import COUNT, NUMBER, TENSORS
from fewbit.checkpoints.new_file import NewFile
from fewbit.errors import CheckpointError

#: Bytes of a number of the types without blocks.
PLAIN = {"F32": 4, "F16": 2, "BF16": 2}
#: Types of the keys for which llama.cpp wants others than usual.
_TYPES = {NUMBER: "UINT16", COUNT: "UINT16", TENSORS: "INT32"}
_Bytes = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the file."""

    name: str
    #: Type by the name that GGUF has for it.
    kind: str
    #: As NumPy has it: the contiguous axis last.
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        if self.kind in PLAIN:
            return self.shape[-1] * PLAIN[self.kind]
        block, size = BLOCKS[self.kind]
        return self.shape[-1] // block * size

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return prod(self.shape[:-1]) * self.row_bytes


class Container:
    """A file with its header written; `put` fills the tensors in any order."""

    def __init__(
        self, path: Path, architecture: str, values: Mapping[str, Any], entries: Sequence[Entry], *, overwrite: bool
    ) -> None:
        self._file = NewFile(path, overwrite=overwrite)
        try:
            _write_header(self._file.path, architecture, values, entries)
            with self._file.path.open("r+b") as file:
                end = file.seek(0, 2)
                start = -(-end // 32) * 32
                file.truncate(start + sum(-(-own.nbytes // 32) * 32 for own in entries))
            # What was written is read by the same checks as anyone's file; offsets are where a reader looks.
            header = read_gguf_header(self._file.path)
        except BaseException:
            self._file.remove()
            raise
        self._places = {own.name: (header.data_start + own.offset, own.nbytes) for own in header.tensors}
        self._left = set(self._places)

    def put(self, name: str, rows: _Bytes) -> bytes:
        """Write the bytes of a tensor, uint8, and return their digest."""
        if name not in self._left:
            raise CheckpointError(f"tensor {name} is not in the manifest, or came twice")
        start, nbytes = self._places[name]
        if rows.nbytes != nbytes:
            raise CheckpointError(f"tensor {name} has {rows.nbytes} bytes, the manifest says {nbytes}")
        content = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
        with self._file.path.open("r+b") as file:
            file.seek(start)
            file.write(content.data)
        self._left.remove(name)
        return digest(content)

    def require_filled(self) -> None:
        """Raise `CheckpointError` unless every tensor has come."""
        if self._left:
            raise CheckpointError(f"tensors of the manifest never came: {', '.join(sorted(self._left)[:5])}")

    def close(self) -> Path:
        """Move the file to its name and return it; every tensor must have come."""
        self.require_filled()
        return self._file.commit()

    def abort(self) -> None:
        """Remove what was written and not closed."""
        self._file.remove()


def digest(content: _Bytes) -> bytes:
    """Return a digest of bytes, by which equal tensors are known."""
    return blake2b(np.ascontiguousarray(content).reshape(-1).data, digest_size=16).digest()


def _write_header(path: Path, architecture: str, values: Mapping[str, Any], entries: Sequence[Entry]) -> None:
    from gguf import GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, architecture)
    for key, value in values.items():
        writer.add_key_value(key, value, *_types(key, value))
    for own in entries:
        writer.add_tensor_info(own.name, own.shape, np.dtype(np.float32), own.nbytes, GGMLQuantizationType[own.kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


def _types(key: str, value: Any) -> tuple[Any, Any]:
    """Return the type of a value, and that of its elements."""
    from gguf import GGUFValueType

    if key in _TYPES:
        return GGUFValueType[_TYPES[key]], None
    if isinstance(value, list):
        if not value:
            raise CheckpointError(f"{key} is an empty list, which GGUF does not have")
        return GGUFValueType.ARRAY, _types(key, value[0])[0] if type(value[0]) is not int else GGUFValueType.INT32
    if isinstance(value, int) and not isinstance(value, bool):
        return (GGUFValueType.UINT32 if 0 <= value < 1 << 32 else GGUFValueType.INT64), None
    kinds = {bool: GGUFValueType.BOOL, float: GGUFValueType.FLOAT32, str: GGUFValueType.STRING}
    if type(value) not in kinds:
        raise CheckpointError(f"{key} = {value!r:.60} is of a type that GGUF has no place for")
    return kinds[type(value)], None
