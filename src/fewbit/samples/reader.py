"""Readers as onnxruntime has them: `get_next()` gives a batch, or `None` after the last one.

One that can `rewind()` is read anew whenever batches are asked for; of any other what it gives is recorded.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fewbit.errors import CalibrationError
from fewbit.numerics.namespace import to_numpy
from fewbit.samples.batches import Lazy, arrays_in
from fewbit.samples.recorded import Recorded


def batches_of_reader(reader: Any) -> Sequence[Any]:
    """Return the batches of an object with `get_next`, which may have `rewind` too."""
    return Replayed(reader) if hasattr(reader, "rewind") else Recorded(given_by(reader))


def given_by(reader: Any) -> Iterator[Any]:
    """Yield what a reader gives until it gives `None`.

    Raises:
        CalibrationError: something else than a dict.

    """
    while (batch := reader.get_next()) is not None:
        if not isinstance(batch, Mapping):
            raise CalibrationError(
                f"{type(reader).__name__}.get_next() gave a {type(batch).__name__}; it must be a dict of arrays by "
                "input name, or None after the last one"
            )
        yield batch


class Replayed(Lazy[Any]):
    """The batches of a reader that begins again; it is held to giving the same ones, of which a checksum is kept."""

    def __init__(self, reader: Any) -> None:
        """Read everything once, to count it."""
        self._reader = reader
        reader.rewind()
        self._checksums = [_checksum(batch) for batch in given_by(reader)]
        #: Which batch comes next; the reader stands behind the last one.
        self._next = len(self._checksums)

    def __len__(self) -> int:
        return len(self._checksums)

    def made(self, index: int) -> Any:
        """Return a batch; one that does not come next is come to by beginning again."""
        if index < self._next:
            self._reader.rewind()
            self._next = 0
        while self._next <= index:
            batch = next(given_by(self._reader), None)
            self._next += 1
        if batch is None or _checksum(batch) != self._checksums[index]:
            raise CalibrationError(
                f"{type(self._reader).__name__} gives other batches after rewind(), from number {index} on; give one "
                "without rewind, of which the batches are recorded"
            )
        return batch


def _checksum(batch: Any) -> int:
    found = 0
    for name, array in arrays_in(batch):
        numbers = np.ascontiguousarray(to_numpy(array)) if hasattr(array, "shape") else np.empty(0)
        numbers = np.empty(0) if numbers.dtype.hasobject else numbers  # texts: their addresses would be compared
        head = f"{name} {numbers.dtype} {numbers.shape}".encode()
        found = zlib.crc32(numbers.reshape(-1).view(np.uint8).data, zlib.crc32(head, found))
    return found
