"""Samples in files, opened as what they turn out to be: `.npz`, `.npy`, a folder of `.npy`, a folder of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.errors import CalibrationError, RecipeError
from fewbit.samples.batches import Cut, Numbers, Store, spread
from fewbit.samples.images import ENDINGS, ImageFolder
from fewbit.samples.labels import BESIDE, read_labels, whole_numbers
from fewbit.samples.model_input import ModelInput, at_once
from fewbit.samples.npy import LABELS, NpyFile, NpyFolder
from fewbit.samples.npz import NpzFile
from fewbit.samples.preprocessing import Preprocessing

#: Samples of a batch, where neither the model nor the user says.
BATCH = 32
#: What the files of NumPy begin with.
_ARCHIVE, _ARRAY = b"PK\x03\x04", b"\x93NUMPY"

_Kind = type[NpzFile | NpyFile | NpyFolder | ImageFolder]


@dataclass(frozen=True, slots=True)
class Opened:
    """Samples that are there."""

    #: Batches, read when they are asked for.
    batches: Sequence[Any]
    #: What to call them in a report.
    name: str
    #: Classes of the samples in the order of the batches, (samples,) or more axes, int64; `None` where there are none.
    labels: Numbers | None


@dataclass(frozen=True, slots=True)
class Samples:
    """Where samples lie and how they become batches.

    >>> Samples("photographs", preprocessing=Preprocessing(size=224), count=256).count
    256
    """

    #: An `.npz` archive with an array for each input, the first axis that of samples; an `.npy` file; a folder of
    #: `.npy` files, of a sample or a batch each, or with such a folder for each input; a folder of images.
    path: str | Path
    _: KW_ONLY
    #: How many at most, at even distances; left out: all, for calibration 512.
    count: int | None = None
    #: Samples of a batch; left out: what the model takes, or 32.
    batch_size: int | None = None
    #: Of images: what is done to them, or the path of a TOML file that says so.
    preprocessing: Preprocessing | str | Path | None = None
    #: A `.npy` or `.csv` file with the classes; left out: `labels` in the archive, or of that name in the folder.
    labels: str | Path | None = None

    def __post_init__(self) -> None:
        for name in ("count", "batch_size"):
            given = getattr(self, name)
            if given is not None and (not isinstance(given, int) or given < 1):
                raise RecipeError(f"{name} = {given!r} of samples; give 1 at least, or leave it out")

    def open(self, inputs: Sequence[ModelInput] | None, at_most: int | None = None) -> Opened:
        """Return the samples as batches for a model with these `inputs`, `at_most` so many where `count` says nothing.

        Raises:
            CalibrationError: files that cannot be read or do not fit the model.
            RecipeError: options that do not go with these files.
            MissingExtraError: images without Pillow.

        """
        store = self._store(Path(self.path), inputs)
        sizes = store.sizes
        total = sum(sizes) if sizes is not None else len(store)
        wanted = min(total, self.count or at_most or total)
        if sizes is not None:
            places, size = self._files(sizes, wanted, total), 1
        else:
            places, size = self._cut(at_once(inputs or ()), wanted, total)
        rows = _rows(places, sizes)
        name = f"{total:,} samples" if len(rows) == total else f"{len(rows):,} of {total:,} samples"
        labels = self._labels(store, total)
        own = labels if labels is None else labels[rows]
        return Opened(Cut(store, places, size), f"{name} of {Path(self.path).name}", own)

    def _files(self, sizes: Sequence[int], wanted: int, total: int) -> Sequence[int]:
        """Return which files to take of those that hold batches of `sizes`."""
        if self.batch_size is not None:
            raise RecipeError(f"{self.path} holds a batch a file, which are not cut; leave out the batch size")
        return spread(len(sizes), max(1, len(sizes) * wanted // total))

    def _cut(self, fixed: int | None, wanted: int, total: int) -> tuple[Sequence[int], int]:
        """Return which samples to take and how many at once, for a model that may take a `fixed` number."""
        if fixed is None:
            return spread(total, wanted), self.batch_size or BATCH
        if self.batch_size not in (None, fixed):
            raise RecipeError(f"batch size {self.batch_size}, but the model takes {fixed} at once; leave it out")
        if wanted < fixed:
            raise CalibrationError(f"{self.path}: {wanted} samples, and the model takes {fixed} at once; give more")
        return spread(total, wanted - wanted % fixed), fixed

    def _store(self, path: Path, inputs: Sequence[ModelInput] | None) -> Store:
        kind = kind_of(path)
        if kind is None:
            raise CalibrationError(
                f"{path} holds no samples; give an .npz or .npy file, or a folder of .npy files or images"
                if path.exists() else f"no samples {str(path)!r}: no such file or folder"
            )  # fmt: skip
        table = self.preprocessing
        if table is None:
            return kind(path, inputs)
        if kind is not ImageFolder:
            raise RecipeError(f"{path} holds arrays, which are taken as they are; leave out the preprocessing")
        return ImageFolder(path, inputs, table if isinstance(table, Preprocessing) else Preprocessing.from_toml(table))

    def _labels(self, store: Store, total: int) -> Numbers | None:
        path = Path(self.path)
        beside = [path / name for name in BESIDE if (path / name).is_file()]
        own = Path(self.labels) if self.labels is not None else next(iter(beside), None)
        if own is not None:
            found = read_labels(own, store.names)
        elif store.labels is not None:
            found = whole_numbers(store.labels, path)
        else:
            return None
        if len(found) != total:
            raise CalibrationError(f"{own or path} has {len(found)} labels for {total} samples; give one for each")
        return found


def kind_of(path: Path) -> _Kind | None:
    """Return what reads the samples at `path`, `None` where there are none; a file is told by how it begins.

    Raises:
        CalibrationError: a folder with several kinds of them, or with none.

    """
    if path.is_dir():
        return _kind_of_folder(path)
    try:
        with path.open("rb") as file:
            head = file.read(len(_ARRAY))
    except OSError:
        head = b""
    if head.startswith(_ARCHIVE) or path.suffix == ".npz":
        return NpzFile if path.exists() else None
    return NpyFile if path.exists() and (head == _ARRAY or path.suffix == ".npy") else None


def _kind_of_folder(path: Path) -> _Kind:
    arrays = any(file.name != LABELS for pattern in ("*.npy", "*/*.npy") for file in path.glob(pattern))
    images = any(file.suffix.lower() in ENDINGS for file in path.rglob("*"))
    if arrays == images:
        held = "both .npy files and images" if arrays else "neither .npy files nor images"
        raise CalibrationError(f"folder {path} holds {held}; give a folder of one kind of samples")
    return NpyFolder if arrays else ImageFolder


def are_samples(data: object) -> bool:
    """Whether `data` are samples in files: a `Samples`, or a path that looks like some."""
    if not isinstance(data, (str, Path)):
        return isinstance(data, Samples)
    path = Path(data)
    return path.is_dir() or path.suffix in (".npz", ".npy") or (path.is_file() and kind_of(path) is not None)


def _rows(places: Sequence[int], sizes: Sequence[int] | None) -> Numbers:
    """Return the numbers of the samples at `places`, of files that hold `sizes` samples each."""
    if sizes is None:
        return np.asarray(places)
    ends = list(accumulate(sizes, initial=0))
    return np.concatenate([np.arange(ends[place], ends[place + 1]) for place in places])
