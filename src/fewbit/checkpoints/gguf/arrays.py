"""The elements of arrays in the metadata of a GGUF file, whose header has been checked before."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from fewbit.checkpoints.gguf_header import ArrayLength, GgufHeader
from fewbit.errors import CheckpointError

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def read_array(path: Path, where: ArrayLength) -> list[Any]:
    """Return the elements of an array: numbers, bools or texts.

    Raises:
        CheckpointError: the file is another than when its header was read.

    """
    try:
        with path.open("rb") as file:
            file.seek(where.position)
            if where.kind in _NUMBERS:
                form = f"<{int(where)}{_NUMBERS[where.kind]}"
                return list(struct.unpack(form, file.read(struct.calcsize(form))))
            left = path.stat().st_size - where.position
            return [_text(file, left) for _ in range(where)]
    except (OSError, struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {path} again: {error}; is it being written?") from error


def read_values(path: Path, header: GgufHeader, prefix: str) -> dict[str, Any]:
    """Return the metadata whose keys begin with `prefix`, arrays as lists."""
    return {
        key: read_array(path, value) if isinstance(value, ArrayLength) else value
        for key, value in header.values.items()
        if key.startswith(prefix)
    }


def _text(file: BinaryIO, left: int) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > left:
        raise struct.error(f"a text of {length} bytes where {left} are left")
    return file.read(length).decode("utf-8")
