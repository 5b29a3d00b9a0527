"""The classes of samples: whole numbers, in a `.npy` file in the order of the samples, or in a `.csv` file.

A line of the latter is a class, or the name of a file and its class; a first line of titles may be there.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fewbit.errors import CalibrationError
from fewbit.samples.batches import Numbers
from fewbit.samples.stored_array import StoredArray

#: Where they are looked for in the folder of the samples.
BESIDE = ("labels.npy", "labels.csv")


def read_labels(path: Path, names: Sequence[str] | None) -> Numbers:
    """Return the classes in the file at `path`, (samples,) or more axes, int64; `names` are those of the files.

    Raises:
        CalibrationError: a file that cannot be read, classes that are no whole numbers, or files without one.

    """
    if not path.is_file():
        raise CalibrationError(f"no labels {str(path)!r}: no such file")
    if path.suffix == ".npy":
        return whole_numbers(StoredArray.in_file(path).whole(), path)
    if path.suffix != ".csv":
        raise CalibrationError(f"labels {path} are neither .npy nor .csv")
    rows = _rows(path)
    if not rows:
        raise CalibrationError(f"labels {path} hold no line; give a class for each sample")
    if len(rows[0][1]) == 1:
        return np.asarray([_class(cells[0], line, path) for line, cells in rows])
    return _by_name(rows, names, path)


def whole_numbers(labels: Numbers, where: object) -> Numbers:
    """Return labels as int64; raises `CalibrationError` for other numbers than whole ones from 0 on."""
    if labels.dtype.kind not in "iu" or not labels.ndim:
        raise CalibrationError(
            f"the labels of {where} are {labels.dtype} of shape {labels.shape}; classes are whole numbers, one a sample"
        )
    if labels.size and int(labels.min()) < 0:
        raise CalibrationError(f"the labels of {where} hold {int(labels.min())}; classes count from 0")
    return labels.astype(np.int64)


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    """Return the cells of each line with its number, without the titles."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [(line, [cell.strip() for cell in cells]) for line, cells in enumerate(csv.reader(file), 1) if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CalibrationError(f"cannot read labels {path}: {error}") from error
    columns = {len(cells) for _, cells in rows}
    if columns - {1} and columns - {2}:
        raise CalibrationError(
            f"labels {path} have lines of {sorted(columns)} cells; a line is a class, or a file's name and its class"
        )
    return rows[1:] if rows and not _is_class(rows[0][1][-1]) else rows


def _by_name(rows: Sequence[tuple[int, list[str]]], names: Sequence[str] | None, path: Path) -> Numbers:
    if names is None:
        raise CalibrationError(
            f"labels {path} name files, and the samples are in one; give a class a line, in their order"
        )
    known = set(names)
    found: dict[str, int] = {}
    for line, (name, label) in rows:
        if name not in known or name in found:
            what = "is named twice" if name in found else "is not among the samples"
            raise CalibrationError(f"labels {path}, line {line}: {name!r:.80} {what}")
        found[name] = _class(label, line, path)
    missing = [name for name in names if name not in found]
    if missing:
        raise CalibrationError(f"labels {path} say nothing of {missing[0]!r} and {len(missing) - 1} more; add them")
    return np.asarray([found[name] for name in names])


def _is_class(cell: str) -> bool:
    return cell.isascii() and cell.isdigit() and len(cell) < 10


def _class(cell: str, line: int, path: Path) -> int:
    if not _is_class(cell):
        raise CalibrationError(
            f"labels {path}, line {line}: {cell!r:.80} is no class; classes are whole numbers from 0 on"
        )
    return int(cell)
