"""What batches carry from one stage to the next: in memory while it is little, else in a file that has no name."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

Numbers = np.ndarray[Any, Any]
#: Bytes of all batches that stay in memory.
IN_MEMORY = 1 << 27


@dataclass(frozen=True, slots=True)
class _Filed:
    """Where an array lies in the file."""

    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(slots=True)
class Carried:
    """Arrays by batch and name; memory is the same for ten batches and for ten thousand."""

    in_memory: int = IN_MEMORY
    _kept: dict[tuple[int, str], Numbers | _Filed] = field(default_factory=dict)
    _filled: int = 0
    _file: IO[bytes] | None = None
    _end: int = 0
    #: Room in the file that is free again, by size in bytes.
    _free: dict[int, list[int]] = field(default_factory=dict)

    def put(self, batch: int, name: str, numbers: Numbers) -> None:
        """Keep an array."""
        if self._filled + numbers.nbytes <= self.in_memory:
            self._filled += numbers.nbytes
            self._kept[batch, name] = numbers
            return
        self._file = self._file or tempfile.TemporaryFile(prefix="fewbit-")  # noqa: SIM115  # closed by `close`
        free = self._free.get(numbers.nbytes)
        start = free.pop() if free else self._end
        if start == self._end:
            self._end += numbers.nbytes
        self._file.seek(start)
        self._file.write(np.ascontiguousarray(numbers).data)
        self._kept[batch, name] = _Filed(start, numbers.dtype, numbers.shape)

    def get(self, batch: int, name: str) -> Numbers:
        """Return an array that is kept."""
        own = self._kept[batch, name]
        if not isinstance(own, _Filed):
            return own
        assert self._file is not None
        numbers = np.empty(own.shape, own.dtype)
        self._file.seek(own.start)
        self._file.readinto(numbers.data.cast("B")) if numbers.nbytes else None  # type: ignore[attr-defined]
        return numbers

    def drop(self, batch: int, names: Collection[str]) -> None:
        """Forget arrays."""
        for name in names:
            own = self._kept.pop((batch, name), None)
            if isinstance(own, _Filed):
                size = int(np.prod(own.shape)) * own.dtype.itemsize
                self._free.setdefault(size, []).append(own.start)
            elif own is not None:
                self._filled -= own.nbytes

    def close(self) -> None:
        """Forget everything."""
        self._kept.clear()
        if self._file is not None:
            self._file.close()
            self._file = None
