"""Importance matrices: how large the inputs of each weight are, as llama.cpp's tools write and read them.

GGUF: NAME.in_sum2 (matrices, in), sums of squares of inputs, and NAME.counts (matrices, 1), how many. Legacy: a count
of entries, each a name, calls, and float32 mean squares x calls. Source: llama.cpp, tools/imatrix and llama-quant.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.checkpoints.gguf.arrays import read_array
from fewbit.checkpoints.gguf.container import Container, Entry
from fewbit.checkpoints.gguf_header import MAGIC, ArrayLength, GgufHeader, GgufTensor, read_gguf_header
from fewbit.checkpoints.new_file import require_free_file
from fewbit.checkpoints.tensor_name import require_plain
from fewbit.errors import CheckpointError
from fewbit.whole_file import write_whole

_Floats = np.ndarray[Any, Any]
_SUMS, _COUNTS = ".in_sum2", ".counts"
#: Entries of a legacy file, and bytes of a name in it.
_MOST, _LONGEST = 1 << 18, 1 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportanceMatrix:
    """Sums of squares by the name that a weight has in GGUF."""

    #: float32 (matrices, in): several where a weight holds several experts.
    sums: Mapping[str, _Floats]
    #: float32 (matrices,): rows of inputs that were summed.
    counts: Mapping[str, _Floats]
    #: What was read, chunks of it and tokens of a chunk.
    datasets: tuple[str, ...] = ()
    chunks: int = 0
    chunk_size: int = 0

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the matrix in GGUF form, or to a `.dat` in the older form; see `write_importance_matrix`."""
        return write_importance_matrix(self, Path(path), overwrite=overwrite)

    def mean_squares(self, name: str) -> _Floats:
        """Return the mean squares of the inputs of a weight, float32 (matrices, in); 1 where nothing was counted."""
        counts = self.counts[name][:, None]
        return np.where(counts > 0, self.sums[name] / np.maximum(counts, 1), np.float32(1)).astype(np.float32)


def write_importance_matrix(matrix: ImportanceMatrix, path: Path, *, overwrite: bool = False) -> Path:
    """Write `matrix` and return the path: in GGUF form, as llama-quantize reads it, or in the older form to a `.dat`.

    Raises:
        CheckpointError: the path exists or cannot be written, sums that are no finite numbers, or several matrices of a
            weight, for which the older form has no place.

    """
    for name, sums in matrix.sums.items():
        if not np.isfinite(sums).all() or (sums < 0).any():
            raise CheckpointError(f"sums of squares of the inputs of {name} are not finite, or below 0")
    if path.suffix == ".dat":
        return _write_legacy(matrix, path, overwrite=overwrite)
    entries = []
    for name, sums in matrix.sums.items():
        entries += [Entry(name + _SUMS, "F32", sums.shape), Entry(name + _COUNTS, "F32", (len(sums), 1))]
    values = {
        "general.type": "imatrix",
        "imatrix.datasets": list(matrix.datasets) or ["unknown"],
        "imatrix.chunk_count": matrix.chunks,
        "imatrix.chunk_size": matrix.chunk_size,
    }
    made = Container(path, "imatrix", values, entries, overwrite=overwrite)
    try:
        for name, sums in matrix.sums.items():
            made.put(name + _SUMS, np.ascontiguousarray(sums, np.float32).view(np.uint8))
            made.put(name + _COUNTS, np.ascontiguousarray(matrix.counts[name], np.float32).view(np.uint8))
        return made.close()
    finally:
        made.abort()


def _write_legacy(matrix: ImportanceMatrix, path: Path, *, overwrite: bool) -> Path:
    """Write the older form: a chunk counts as a call."""
    calls, content = max(matrix.chunks, 1), [struct.pack("<i", len(matrix.sums))]
    for name, sums in matrix.sums.items():
        if len(sums) != 1:
            raise CheckpointError(f"{name} has {len(sums)} matrices, which a .dat file has no place for; write a .gguf")
        values = (matrix.mean_squares(name)[0] * np.float32(calls)).astype("<f4")
        key = name.encode()
        content += [struct.pack("<i", len(key)), key, struct.pack("<ii", calls, len(values)), values.tobytes()]
    data = ", ".join(matrix.datasets).encode()[:_LONGEST]
    require_free_file(path, overwrite=overwrite)
    try:
        write_whole(path, b"".join([*content, struct.pack("<ii", calls, len(data)), data]))
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from error
    return path


def read_importance_matrix(path: Path) -> ImportanceMatrix:
    """Return the matrix in a file of either form.

    Raises:
        CheckpointError: no such file, or one that does not hold what it says.

    """
    try:
        with path.open("rb") as file:
            new = file.read(len(MAGIC)) == MAGIC
        return _read_gguf(path) if new else _read_legacy(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def _read_gguf(path: Path) -> ImportanceMatrix:
    header = read_gguf_header(path)
    values = header.values
    if values.get("general.type") != "imatrix":
        raise CheckpointError(f"{path} is no importance matrix: its general.type is {values.get('general.type')!r:.60}")
    tensors = {own.name: own for own in header.tensors}
    sums, counts = {}, {}
    for name, own in tensors.items():
        if not name.endswith(_SUMS):
            if name.endswith(_COUNTS) and name.removesuffix(_COUNTS) + _SUMS not in tensors:
                raise CheckpointError(f"{path}: {name} counts what no {_SUMS} beside it sums; the file is damaged")
            continue
        base = name.removesuffix(_SUMS)
        beside = tensors.get(base + _COUNTS)
        matrices, width = (1, *own.shape)[-2:]
        plain = own.kind == "F32" and beside is not None and beside.kind == "F32"
        if not plain or beside is None or int(np.prod(beside.shape)) != matrices or len(own.shape) > 2:
            raise CheckpointError(f"{path}: {name} has no {base}{_COUNTS} of {matrices} numbers beside it")
        sums[base] = _numbers(path, header, own).reshape(matrices, width)
        counts[base] = _numbers(path, header, beside).reshape(matrices)
    datasets = values.get("imatrix.datasets")
    return _checked(
        path,
        ImportanceMatrix(
            sums=sums,
            counts=counts,
            datasets=tuple(map(str, read_array(path, datasets))) if isinstance(datasets, ArrayLength) else (),
            chunks=_whole(values.get("imatrix.chunk_count")),
            chunk_size=_whole(values.get("imatrix.chunk_size")),
        ),
    )


def _numbers(path: Path, header: GgufHeader, own: GgufTensor) -> _Floats:
    return np.fromfile(path, "<f4", own.nbytes // 4, offset=header.data_start + own.offset)


def _whole(value: object) -> int:
    return int(value) if isinstance(value, int) and not isinstance(value, ArrayLength) else 0


def _read_legacy(path: Path) -> ImportanceMatrix:
    legacy = _Legacy(path.read_bytes())
    try:
        matrix = legacy.matrix()
    except (struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no importance matrix, or not the whole of one: {error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path} {error}") from error
    return _checked(path, matrix)


class _Legacy:
    """Reads the older form, which has no magic number: every count is held against the bytes that are there."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._place = 0

    @property
    def _left(self) -> int:
        return len(self._content) - self._place

    def _take(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self._content, self._place)
        self._place += struct.calcsize(f"<{form}")
        return value

    def matrix(self) -> ImportanceMatrix:
        """Return what the whole file holds."""
        sums: dict[str, _Floats] = {}
        counts: dict[str, _Floats] = {}
        entries = self._take("i")
        if not 0 < entries <= _MOST:
            raise CheckpointError(f"is no importance matrix: it claims {entries} entries")
        for _ in range(entries):
            name, calls, values = self._entry()
            if name in sums:
                raise CheckpointError(f"names {name!r:.60} twice; which of them counts is not said")
            sums[name], counts[name] = values, np.asarray([calls], np.float32)
        # Older ones end here; newer ones say how many chunks of which text there were.
        chunks, length = (self._take("i"), self._take("i")) if self._left else (0, 0)
        if length != self._left:
            raise CheckpointError(
                f"claims {entries} entries and a text of {length} bytes, and {self._left} follow; the file is damaged"
            )
        data = self._take(f"{length}s").decode("utf-8")
        return ImportanceMatrix(sums=sums, counts=counts, datasets=(data,) if data else (), chunks=max(chunks, 0))

    def _entry(self) -> tuple[str, int, _Floats]:
        length = self._take("i")
        if not 0 < length <= _LONGEST:
            raise CheckpointError(f"claims a name of {length} bytes")
        name = self._take(f"{length}s").decode("utf-8")
        require_plain(name)
        calls, width = self._take("i"), self._take("i")
        if not 0 < width <= self._left // 4:
            raise CheckpointError(f"claims {width} numbers for {name!r:.60} and holds fewer")
        values = np.frombuffer(self._content, "<f4", width, self._place)[None].astype(np.float32)
        self._place += 4 * width
        return name, calls, values


def _checked(path: Path, matrix: ImportanceMatrix) -> ImportanceMatrix:
    """Return `matrix`; raise `CheckpointError` for one that holds nothing, or what no sum of squares is."""
    if not matrix.sums:
        raise CheckpointError(f"{path} holds no sums of squares; is it an importance matrix?")
    for name, sums in matrix.sums.items():
        # Sums are of squares, and a count is of rows; 0 rows were never reached.
        if not all(np.isfinite(own).all() and (own >= 0).all() for own in (sums, matrix.counts[name])):
            raise CheckpointError(f"{path}: what it holds of {name!r:.60} is not finite, or below 0")
    return matrix
