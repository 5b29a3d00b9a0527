"""An array in NumPy's `.npy` layout, read sample by sample from a file or out of an archive: numpy.lib.format.

The header is held against the bytes that are there before anything of its size is allocated, and pickles are not read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any
from weakref import finalize

import numpy as np

from fewbit.errors import CalibrationError
from fewbit.samples.batches import Numbers

#: Kinds of numbers that a model takes: booleans, integers, floats.
_KINDS = "biuf"
_HEADERS: dict[tuple[int, int], Callable[..., tuple[tuple[int, ...], bool, np.dtype[Any]]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(slots=True, weakref_slot=True)
class StoredArray:
    """An array whose first axis is that of samples; its stream stays open, since batches are read in order."""

    #: What to call it in messages.
    what: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    _open: Callable[[], IO[bytes]]
    #: Where the numbers begin.
    _start: int
    _stream: IO[bytes] | None = None

    @classmethod
    def of(cls, open_stream: Callable[[], IO[bytes]], size: int, what: str) -> StoredArray:
        """Return the array of a stream of `size` bytes.

        Raises:
            CalibrationError: no array of numbers, or one that is cut short.

        """
        try:
            with open_stream() as stream:
                shape, fortran, dtype = _header(stream, what)
                start = stream.tell()
        except CalibrationError:
            raise
        except Exception as error:  # zipfile, zlib, ast and tokenize have errors of their own
            raise CalibrationError(f"{what} is no array that can be read: {error}; save it with numpy.save") from error
        if dtype.kind not in _KINDS:
            raise CalibrationError(f"{what} holds {dtype}, and models take numbers; convert it with .astype")
        if fortran and len(shape) > 1:
            raise CalibrationError(
                f"{what} lies in Fortran order, so that no sample is in one piece; save numpy.ascontiguousarray of it"
            )
        if start + prod(shape) * dtype.itemsize != size:
            raise CalibrationError(
                f"{what} should have {start + prod(shape) * dtype.itemsize} bytes for shape {shape} of {dtype}, "
                f"but has {size}; fetch or save it again"
            )
        return cls(what, shape, dtype, open_stream, start)

    @classmethod
    def in_file(cls, path: Path) -> StoredArray:
        """Return the array of the file at `path`."""
        return cls.of(lambda: path.open("rb"), path.stat().st_size, str(path))

    def __len__(self) -> int:
        """Return how many samples there are."""
        if not self.shape:
            raise CalibrationError(f"{self.what} is a single number; the first axis must be that of samples")
        if self.shape[0] and not self.row_bytes:
            raise CalibrationError(f"{self.what} has shape {self.shape}: samples without a number; save others")
        return self.shape[0]

    def rows(self, places: Sequence[int]) -> Numbers:
        """Return the samples at `places`, in the byte order of this machine."""
        found = np.empty((len(places), *self.shape[1:]), self.dtype)
        row = self.row_bytes
        view = found.reshape(-1).view(np.uint8).data
        for first, count, at in _runs(places) if row else ():
            self._read(self._start + first * row, view[at * row : (at + count) * row])
        return found.astype(self.number, copy=False)

    def whole(self) -> Numbers:
        """Return all of it, and close the stream."""
        found = np.empty(self.shape, self.dtype)
        try:
            if found.nbytes:
                self._read(self._start, found.reshape(-1).view(np.uint8).data)
        finally:
            self.close()
        return found.astype(self.number, copy=False)

    @property
    def row_bytes(self) -> int:
        """Bytes of a sample."""
        return prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def number(self) -> np.dtype[Any]:
        """The type of its numbers in the byte order of this machine."""
        return self.dtype.newbyteorder("=")

    def close(self) -> None:
        """Close the stream; it is opened again when it is needed."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _read(self, start: int, into: memoryview) -> None:
        try:
            if self._stream is None:
                self._stream = self._open()
                # Garbage in cycles is taken apart in any order: a `__del__` here may come after the stream's own.
                finalize(self, self._stream.close)
            self._stream.seek(start)
            got = self._stream.readinto(into)  # type: ignore[attr-defined]
        except Exception as error:  # as above
            raise CalibrationError(f"{self.what} cannot be read: {error}; fetch or save it again") from error
        if got != len(into):
            raise CalibrationError(f"{self.what} ends too early; fetch or save it again")


def _header(stream: IO[bytes], what: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        number = ".".join(map(str, version))
        raise CalibrationError(
            f"{what} is of version {number}, which is for fields with names; save one array of numbers for each input"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of files that Python 2 wrote
        shape, fortran, dtype = _HEADERS[version](stream)
    if dtype.hasobject:
        raise CalibrationError(
            f"{what} holds Python objects, which are pickles: reading one can run code, so it is not read; save numbers"
        )
    if any(size < 0 for size in shape):
        raise ValueError(f"shape {shape}")
    return shape, fortran, dtype


def _runs(places: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Yield places that follow one another as (first, count, index of the first)."""
    begin = 0
    for index in range(1, len(places) + 1):
        if index == len(places) or places[index] != places[index - 1] + 1:
            yield places[begin], index - begin, begin
            begin = index
