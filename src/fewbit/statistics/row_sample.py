"""Some rows of a layer's input, to try weights on: those with the least hash, so any cut of the data gives the same.

A bottom-k sketch; the hash is of the bits of a few numbers of a row, mixed as in SplitMix64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fewbit.numerics.namespace import Array, array_namespace, to_numpy

#: Rows that are kept.
KEPT = 512
#: Numbers of a row that its hash is made of.
_HASHED = 16

Hashes = np.ndarray[Any, np.dtype[np.uint64]]


@dataclass(slots=True)
class RowSample:
    """Up to `KEPT` rows in the order of their hashes."""

    #: Of a convolution it takes the patches that the weight is multiplied with.
    of_rows: ClassVar[bool] = True

    #: float32 (rows, width).
    rows: Array
    hashes: Hashes
    #: Rows seen.
    count: int = 0

    @classmethod
    def init(cls, width: int, like: Array) -> RowSample:
        """Return the sample of no rows of `width` numbers, in the framework and on the device of `like`."""
        xp = array_namespace(like)
        none = xp.astype(xp.reshape(like, (-1,))[:0], xp.float32)
        return cls(xp.reshape(none, (0, width)), np.zeros(0, dtype=np.uint64))

    @classmethod
    def of_groups(cls, width: int, groups: int, like: Array) -> RowSample:
        """Return the sample of no rows with `groups` parts of `width` numbers."""
        return cls.init(width * groups, like)

    def update(self, rows: Array) -> None:
        """Take in the rows of an array (..., width)."""
        xp = array_namespace(rows)
        rows = xp.astype(xp.reshape(rows, (-1, self.rows.shape[1])), xp.float32, copy=False)
        self.count += int(rows.shape[0])
        self._keep(rows, _hashes(rows))

    def merge(self, other: RowSample) -> None:
        """Take in what `other` has kept."""
        self.count += other.count
        self._keep(other.rows, other.hashes)

    def result(self) -> Array:
        """Return the rows, float32 (rows, width)."""
        return self.rows

    def _keep(self, rows: Array, hashes: Hashes) -> None:
        xp = array_namespace(self.rows)
        # Of many new rows only the least can stay: the others are not copied.
        least = np.sort(np.argsort(hashes, kind="stable")[:KEPT])
        rows = xp.concat([self.rows, _taken(rows, least)], axis=0)
        hashes = np.concatenate([self.hashes, hashes[least]])
        order = np.argsort(hashes, kind="stable")[:KEPT]
        self.rows, self.hashes = _taken(rows, order), hashes[order]


def _taken(rows: Array, places: np.ndarray[Any, Any]) -> Array:
    xp = array_namespace(rows)
    return xp.take(rows, xp.asarray(places, device=rows.device), axis=0)


def _hashes(rows: Array) -> Hashes:
    step = max(1, rows.shape[1] // _HASHED)
    numbers = np.ascontiguousarray(to_numpy(rows[:, ::step])).view(np.uint32).astype(np.uint64)
    odd = np.arange(1, 2 * numbers.shape[1], 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed: Hashes = (numbers * odd).sum(axis=1, dtype=np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
