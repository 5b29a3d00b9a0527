"""Safetensors files as NumPy arrays: files whose headers are written first, tensors in any order; lazy reading.

The safetensors library checks every header that is read. Its own writer holds a file in memory; its NumPy reader knows
no float8.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from fewbit.checkpoints.folder import to_disk, write_at
from fewbit.checkpoints.safetensors_folder import INDEX, ONE_FILE
from fewbit.checkpoints.safetensors_header import create_empty, layout, read_header
from fewbit.errors import CheckpointError
from fewbit.interfaces import StoredTensor

#: The most bytes of tensors in a file, where a manifest does not say.
SHARD_BYTES = 1 << 30


def numpy_type(name: str) -> np.dtype[Any]:
    """Return the NumPy type called `name`, with the small floats of ml_dtypes."""
    return np.dtype(getattr(ml_dtypes, name) if hasattr(ml_dtypes, name) else name)


class ShardedWriter:
    """Writes the tensors of a manifest into one or more files of `folder`, each at its place as it comes."""

    def __init__(self, folder: Path, stored: Sequence[StoredTensor], *, shard_bytes: int | None = None) -> None:
        self._folder = folder
        self._shards = _shards(stored, shard_bytes or SHARD_BYTES)
        self._homes = {tensor.name: number for number, shard in enumerate(self._shards) for tensor in shard}
        self._expected = {tensor.name: tensor for tensor in stored}
        if len(self._expected) != len(stored):
            raise CheckpointError("the manifest names a tensor twice; this is a defect of fewbit")
        #: Where the tensors of a file begin, once it is there.
        self._starts: dict[int, dict[str, int]] = {}
        #: SHA-256 of the bytes of each tensor that came, for whoever writes them down.
        self._digests: dict[str, str] | None = None
        #: Files with bytes that may not be on the disk yet.
        self._loose: set[Path] = set()

    def put(self, name: str, array: np.ndarray[Any, Any]) -> None:
        """Take the next tensor; it must be in the manifest with this shape and type."""
        expected = self._expected.get(name)
        if expected is None:
            raise CheckpointError(f"tensor {name} is not in the manifest, or came twice")
        if tuple(array.shape) != expected.shape or array.dtype != numpy_type(expected.dtype):
            raise CheckpointError(
                f"tensor {name} is {array.dtype}{list(array.shape)}, "
                f"the manifest says {expected.dtype}{list(expected.shape)}"
            )
        number = self._homes[name]
        path = self._folder / self._name(number)
        try:
            if number not in self._starts:
                self._starts[number] = create_empty(path, self._shards[number])
            content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            write_at(path, self._starts[number][name], content.data)
        except OSError as error:
            raise CheckpointError(f"cannot write {path.name}: {error.strerror or error}") from error
        if self._digests is not None:
            self._digests[name] = hashlib.sha256(content.data).hexdigest()
            self._loose.add(path)
        del self._expected[name]

    def settled(self) -> dict[str, str]:
        """Bring what came to the disk; return the SHA-256 of each tensor that came since this was asked before.

        Ask once before the first tensor.
        """
        try:
            for path in self._loose:
                to_disk(path)
            to_disk(self._folder)
        except OSError as error:
            raise CheckpointError(f"cannot write {self._folder}: {error.strerror or error}") from error
        digests, self._digests = self._digests or {}, {}
        self._loose.clear()
        return digests

    def go_on(self, digests: Mapping[str, str]) -> None:
        """Take the tensors that `settled` told of in an earlier run, if their bytes are there and as they were.

        Raises:
            CheckpointError: they are not.

        """
        for number in {self._homes[name] for name in digests if name in self._homes}:
            path = self._folder / self._name(number)
            head, starts, size = layout(self._shards[number])
            try:
                with path.open("rb") as file:
                    found = file.read(len(head))
                there = path.stat().st_size
            except OSError as error:
                raise CheckpointError(f"cannot read {path}, which was begun: {error.strerror or error}") from error
            if found != head or there != size:
                raise CheckpointError(
                    f"{path} is not the file that was begun: {there} bytes of {size}, or another header"
                )
            self._starts[number] = starts
        for name, digest in digests.items():
            stored = self._expected.pop(name, None)
            if stored is None:
                raise CheckpointError(f"tensor {name} was written before, and is not in the manifest")
            path = self._folder / self._name(self._homes[name])
            if _digest(path, self._starts[self._homes[name]][name], stored.nbytes) != digest:
                raise CheckpointError(f"{path}: the bytes of tensor {name} are not those that were written")

    def close(self) -> None:
        """Write the index, if there are several files; every tensor of the manifest must have come."""
        if self._expected:
            raise CheckpointError(f"tensors of the manifest never came: {', '.join(list(self._expected)[:5])}")
        if len(self._shards) > 1:
            where = {name: self._name(number) for name, number in self._homes.items()}
            total = sum(tensor.nbytes for shard in self._shards for tensor in shard)
            index = {"metadata": {"total_size": total}, "weight_map": where}
            (self._folder / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")

    def _name(self, number: int) -> str:
        if len(self._shards) == 1:
            return ONE_FILE
        return f"model-{number + 1:05}-of-{len(self._shards):05}.safetensors"


def _digest(path: Path, start: int, nbytes: int) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while nbytes:
            piece = file.read(min(nbytes, 1 << 22))
            if not piece:
                break
            found.update(piece)
            nbytes -= len(piece)
    return found.hexdigest()


def _shards(stored: Sequence[StoredTensor], shard_bytes: int) -> list[list[StoredTensor]]:
    shards: list[list[StoredTensor]] = [[]]
    size = 0
    for tensor in stored:
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def stored_tensors(path: Path) -> list[StoredTensor]:
    """Return what the file holds, in the order of its bytes."""
    return [entry.tensor for entry in read_header(path).entries]


def tensor_readers(path: Path) -> dict[str, Callable[[], np.ndarray[Any, Any]]]:
    """Return for each tensor of one file how to read it into memory of its own."""
    header = read_header(path)
    return {
        entry.tensor.name: partial(_read_one, path, header.data_start + entry.begin, entry.tensor)
        for entry in header.entries
    }


def _read_one(path: Path, start: int, stored: StoredTensor) -> np.ndarray[Any, Any]:
    raw = np.fromfile(path, np.uint8, stored.nbytes, offset=start)
    if raw.size < stored.nbytes:
        raise CheckpointError(f"{path} ended while {stored.name} was read; is it being written?")
    return _typed(path, raw, stored)


def read_tensors(path: Path) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yield the tensors of one file as read-only arrays that map the file."""
    header = read_header(path)
    data = np.memmap(path, dtype=np.uint8, mode="r")
    for entry in header.entries:
        raw = data[header.data_start + entry.begin : header.data_start + entry.end]
        yield entry.tensor.name, _typed(path, raw, entry.tensor)


def _typed(path: Path, raw: np.ndarray[Any, Any], stored: StoredTensor) -> np.ndarray[Any, Any]:
    """Return the bytes of a tensor as its numbers."""
    if stored.dtype == "bool" and raw.size and raw.max() > 1:
        raise CheckpointError(f"{path}: tensor {stored.name} is of type BOOL and holds the byte {raw.max()}")
    return raw.view(numpy_type(stored.dtype)).reshape(stored.shape)
