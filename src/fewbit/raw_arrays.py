"""Arrays of any size in one file, written as they come and read one at a time; where each lies is told by a table.

The table is not in the file: whoever writes it down vouches for it, and for the SHA-256 of the bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import ml_dtypes
import numpy as np

from fewbit.errors import CheckpointError

Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """Where an array lies."""

    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * _type(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class RawArrays:
    """A file of arrays that is complete."""

    path: Path
    entries: tuple[Entry, ...]
    sha256: str

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, number: int) -> Numbers:
        """Return an array in memory of its own; a file is read, not mapped: an error of the disk is an exception."""
        own = self.entries[number]
        try:
            with self.path.open("rb") as file:
                file.seek(own.begin)
                raw = np.fromfile(file, np.uint8, own.nbytes)
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror or error}") from error
        if raw.size != own.nbytes:
            raise CheckpointError(f"{self.path} ends before its {number + 1}. array does; the run cannot go on from it")
        return raw.view(_type(own.dtype)).reshape(own.shape)

    def require_intact(self) -> None:
        """Raise `CheckpointError` unless the bytes are those that were written."""
        try:
            with self.path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise CheckpointError(f"cannot read {self.path}: {error.strerror or error}") from error
        if found != self.sha256:
            raise CheckpointError(f"{self.path} is not the file that was written: its SHA-256 is another")

    def table(self) -> dict[str, Any]:
        """Return what `of_table` makes these arrays of, for JSON."""
        return {"file": self.path.name, "sha256": self.sha256, "arrays": [asdict(own) for own in self.entries]}

    @classmethod
    def of_table(cls, table: dict[str, Any], folder: Path) -> Self:
        """Return the arrays that a table tells of, in `folder`."""
        entries = (Entry(own["dtype"], tuple(own["shape"]), own["begin"]) for own in table["arrays"])
        return cls(folder / table["file"], tuple(entries), table["sha256"])


class NewRawArrays:
    """A file of arrays that is being written."""

    def __init__(self, path: Path) -> None:
        self._path, self._entries = path, list[Entry]()
        self._digest, self._end = hashlib.sha256(), 0
        self._file = path.open("wb")

    def add(self, array: Numbers) -> int:
        """Write an array, and return its number."""
        self._entries.append(Entry(array.dtype.name, tuple(array.shape), self._end))
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        self._file.write(content)
        self._digest.update(content)
        self._end += content.nbytes
        return len(self._entries) - 1

    def close(self) -> RawArrays:
        """Bring the file to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return RawArrays(self._path, tuple(self._entries), self._digest.hexdigest())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def write_arrays(path: Path, arrays: Iterable[Numbers]) -> RawArrays:
    """Write arrays to a new file and bring it to the disk."""
    with NewRawArrays(path) as file:
        for array in arrays:
            file.add(array)
        return file.close()


def _type(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name) if hasattr(ml_dtypes, name) else name)
