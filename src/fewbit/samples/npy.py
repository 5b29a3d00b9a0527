"""`.npy` files: one with all samples, or folders with a sample or a batch a file, in the order of their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.errors import CalibrationError
from fewbit.samples.batches import Numbers, require_numbers, same_count
from fewbit.samples.model_input import ModelInput, only, require_fit, require_names
from fewbit.samples.stored_array import StoredArray

#: What lies beside the data and is none.
LABELS = "labels.npy"


class NpyFile:
    """The samples of one file, for a model with one input."""

    names: list[str] | None = None
    sizes: list[int] | None = None
    labels: Numbers | None = None

    def __init__(self, path: Path, inputs: Sequence[ModelInput] | None) -> None:
        """Open the file at `path`; one that does not fit `inputs` raises `CalibrationError`."""
        self._array = StoredArray.in_file(path)
        self._count = same_count({path.stem: len(self._array)}, path)
        if inputs is not None:
            own = only(inputs, path)
            require_fit(own, self._array.number, (own.at_once or 1, *self._array.shape[1:]), path)

    def __len__(self) -> int:
        return self._count

    def take(self, places: Sequence[int]) -> Numbers:
        """Return the samples at `places`."""
        found = self._array.rows(places)
        require_numbers(found, self._array.what, places)
        return found


class NpyFolder:
    """Files of one sample each, or of a batch each: those have as many axes as the model declares, or it declares none.

    Files of several inputs lie in a folder for each, under the same names.
    """

    labels: Numbers | None = None

    def __init__(self, path: Path, inputs: Sequence[ModelInput] | None) -> None:
        """Look at every file below `path`; files that do not fit `inputs` raise `CalibrationError`."""
        files = _files(path)
        #: The names of the files, the same for every input.
        self.names: list[str] | None = [file.name for file in next(iter(files.values()))]
        #: By the name of the input; `None` where there is one input.
        self._arrays = {name: [StoredArray.in_file(file) for file in own] for name, own in files.items()}
        if inputs is not None and None not in files:
            require_names([str(name) for name in files], inputs, str(path))
        by_name = {own.name: own for own in inputs or ()}
        whole = {
            name: inputs is None or _are_batches(by_name[name] if name is not None else only(inputs, path), arrays)
            for name, arrays in self._arrays.items()
        }
        if len(set(whole.values())) > 1:
            raise CalibrationError(f"{path} holds samples for some inputs and batches for others; give either for all")
        #: Samples of each file where they hold batches, else `None`.
        self.sizes: list[int] | None = self._counted(path) if all(whole.values()) else None

    def _counted(self, path: Path) -> list[int]:
        columns = zip(*self._arrays.values(), strict=True)
        return [
            same_count(
                {str(name or file): len(array) for name, array in zip(self._arrays, arrays, strict=True)}, path / file
            )
            for file, arrays in zip(self.names or (), columns, strict=True)
        ]

    def __len__(self) -> int:
        """Return how many files there are."""
        return len(self.names or ())

    def take(self, places: Sequence[int]) -> Any:
        """Return the samples of the files at `places`; of files that hold batches the one of one file."""
        found = {name: self._joined([arrays[place] for place in places]) for name, arrays in self._arrays.items()}
        return found.get(None, found)

    def _joined(self, arrays: Sequence[StoredArray]) -> Numbers:
        for array in arrays:
            if (array.shape, array.number) != (arrays[0].shape, arrays[0].number):
                raise CalibrationError(
                    f"{array.what} is {array.shape} of {array.number} and another one {arrays[0].shape} of "
                    f"{arrays[0].number}; samples of one batch must be alike: use a batch size of 1"
                )
        found = []
        for array in arrays:
            numbers = array.whole()
            rows = numbers if self.sizes is not None else numbers[None]
            require_numbers(rows, array.what, range(len(rows)))
            found.append(rows)
        return np.concatenate(found)


def _files(path: Path) -> dict[str | None, list[Path]]:
    """Return the files of a folder, or of the folder of each input, sorted by name."""
    here = sorted(file for file in path.glob("*.npy") if file.name != LABELS)
    if here:
        return {None: here}
    folders = [folder for folder in sorted(path.iterdir()) if folder.is_dir()]
    found: dict[str | None, list[Path]] = {
        folder.name: files for folder in folders if (files := sorted(folder.glob("*.npy")))
    }
    first, *others = found.values()
    for files in others:
        apart = {file.name for file in files} ^ {file.name for file in first}
        if apart:
            raise CalibrationError(
                f"{first[0].parent} and {files[0].parent} must hold files of the same names; {min(apart)!r} is in one "
                "of them only"
            )
    return found


def _are_batches(own: ModelInput, arrays: Sequence[StoredArray]) -> bool:
    """Whether files hold batches, by the number of their axes.

    Raises:
        CalibrationError: files that fit the input neither as samples nor as batches.

    """
    whole = own.shape is None or len(arrays[0].shape) == len(own.shape)
    for array in arrays:
        if own.shape is not None and len(array.shape) != len(own.shape) - (not whole):
            raise CalibrationError(
                f"{array.what} is {array.shape}; input {own.name!r} takes samples of {own.declared(sample=True)}, "
                f"or batches of {own.declared()}, all files alike"
            )
        require_fit(own, array.number, array.shape if whole else (own.at_once or 1, *array.shape), array.what)
    return whole
