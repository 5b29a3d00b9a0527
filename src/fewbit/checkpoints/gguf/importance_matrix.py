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
    content = path.read_bytes()
    place = 0

    def take(form: str) -> Any:
        nonlocal place
        (value,) = struct.unpack_from(f"<{form}", content, place)
        place += struct.calcsize(f"<{form}")
        return value

    sums, counts = {}, {}
    try:
        entries = take("i")
        if not 0 < entries <= _MOST:
            raise CheckpointError(f"{path} is no importance matrix: it claims {entries} entries")
        for _ in range(entries):
            length = take("i")
            if not 0 < length <= _LONGEST:
                raise CheckpointError(f"{path} claims a name of {length} bytes")
            name = take(f"{length}s").decode("utf-8")
            calls, width = take("i"), take("i")
            if not 0 < width <= (len(content) - place) // 4:
                raise CheckpointError(f"{path} claims {width} numbers for {name!r:.60} and holds fewer")
            sums[name] = np.frombuffer(content, "<f4", width, place)[None].astype(np.float32)
            counts[name] = np.asarray([max(calls, 0)], np.float32)
            place += 4 * width
        chunks = take("i") if len(content) - place >= 4 else 0
        length = take("i") if len(content) - place >= 4 else 0
        data = take(f"{length}s").decode("utf-8") if 0 < length <= _LONGEST else ""
    except (struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no importance matrix, or not the whole of one: {error}") from error
    return _checked(
        path,
        ImportanceMatrix(sums=sums, counts=counts, datasets=(data,) if data else (), chunks=max(chunks, 0)),
    )


def _checked(path: Path, matrix: ImportanceMatrix) -> ImportanceMatrix:
    """Return `matrix`; raise `CheckpointError` for one that holds nothing, or what no sum of squares is."""
    if not matrix.sums:
        raise CheckpointError(f"{path} holds no sums of squares; is it an importance matrix?")
    for name, sums in matrix.sums.items():
        if not np.isfinite(sums).all() or (sums < 0).any() or not np.isfinite(matrix.counts[name]).all():
            raise CheckpointError(f"{path}: what it holds of {name!r:.60} is not finite, or below 0")
    return matrix
