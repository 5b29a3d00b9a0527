"""`.npz` archives: an array by input name each, the first axis that of samples, read batch by batch, packed or not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any
from zipfile import ZipFile, ZipInfo

from fewbit.errors import CalibrationError
from fewbit.samples.batches import Numbers, require_numbers, same_count
from fewbit.samples.model_input import ModelInput, require_fit, require_names
from fewbit.samples.stored_array import StoredArray

#: The array of the classes, where no input has this name.
LABELS = "labels"
#: How numpy.savez calls arrays that were given without a name.
_NAMELESS = re.compile(r"arr_(\d+)")
#: More than any packed archive shrinks: zlib writes a byte for at most 1032.
_MOST_PACKED = 1100
#: What a batch, the numbers of all samples and the classes may take: so many times the file, and so many bytes beside.
_TIMES, _BESIDE = 16, 64 << 20


class NpzFile:
    """The samples of an archive; a batch is a dict, or a tuple where the arrays were saved without names."""

    names: list[str] | None = None
    sizes: list[int] | None = None

    def __init__(self, path: Path, inputs: Sequence[ModelInput] | None) -> None:
        """Open the archive at `path`; arrays that do not fit `inputs` raise `CalibrationError`."""
        arrays = _arrays(path)
        self._path, self._most = path, _TIMES * path.stat().st_size + _BESIDE
        self._count = same_count({name: len(array) for name, array in arrays.items()}, path)
        self._require_room("the numbers of its samples", 8 * self._count)
        labels = arrays.pop(LABELS, None) if LABELS not in {own.name for own in inputs or ()} else None
        nameless = [_NAMELESS.fullmatch(name) for name in arrays]
        #: In the order of the inputs, where they have no names.
        self._arrays = arrays if not all(nameless) else {
            f"arr_{number}": arrays[f"arr_{number}"] for number in sorted(int(own[1]) for own in nameless if own)
        }  # fmt: skip
        self._named = not all(nameless)
        if inputs is not None:
            self._require_fit(path, inputs)
        if labels is not None:
            self._require_room(
                "its labels", self._count * (labels.row_bytes + 8 * labels.row_bytes // labels.dtype.itemsize)
            )
        self.labels: Numbers | None = None if labels is None else labels.whole()

    def _require_room(self, what: str, nbytes: int) -> None:
        """Raise `CalibrationError` for more bytes than may come of this archive: packed zeros are a thousandth."""
        if nbytes > self._most:
            raise CalibrationError(
                f"{self._path}: {what} unpack to {nbytes} bytes, more than {_TIMES} times the file and {_BESIDE}; "
                "take smaller batches, or save it with numpy.savez, which does not pack"
            )

    def _require_fit(self, path: Path, inputs: Sequence[ModelInput]) -> None:
        if self._named or len(self._arrays) != len(inputs):
            require_names(self._arrays, inputs, str(path))
        by_name = {own.name: own for own in inputs}
        pairs = zip(
            by_name.values() if not self._named else map(by_name.__getitem__, self._arrays),
            self._arrays.values(),
            strict=True,
        )
        for own, array in pairs:
            require_fit(own, array.number, (own.at_once or 1, *array.shape[1:]), path)

    def __len__(self) -> int:
        return self._count

    def take(self, places: Sequence[int]) -> Any:
        """Return the samples at `places`."""
        self._require_room("the samples of a batch", len(places) * sum(own.row_bytes for own in self._arrays.values()))
        found = {name: array.rows(places) for name, array in self._arrays.items()}
        for name, numbers in found.items():
            require_numbers(numbers, self._arrays[name].what, places)
        if self._named:
            return found
        return tuple(found.values()) if len(found) > 1 else next(iter(found.values()))


def _arrays(path: Path) -> dict[str, StoredArray]:
    try:
        with ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # of struct, and of versions, beside its own
        raise CalibrationError(f"{path} is no .npz archive: {error}; save it with numpy.savez") from error
    found = {}
    for member in members:
        name = member.filename.removesuffix(".npy")
        what = f"{path}: {name!r}"
        if name == member.filename:
            raise CalibrationError(f"{what} is no array; save arrays alone with numpy.savez")
        if member.file_size > _MOST_PACKED * path.stat().st_size:
            raise CalibrationError(
                f"{what} claims {member.file_size} bytes, more than the file can hold; fetch it again"
            )
        found[name] = StoredArray.of(partial(_member, path, member), member.file_size, what)
    return found


def _member(path: Path, member: ZipInfo) -> IO[bytes]:
    """Open a member; the file of the archive is closed together with it."""
    with ZipFile(path) as archive:
        return archive.open(member)
