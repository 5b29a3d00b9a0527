"""A histogram of all numbers of a layer's input: streams in bounded memory, and widens without a second pass.

Bins cover [-R, R) evenly with R a power of two; a larger number doubles R, for which neighbouring bins are added up.
So any cut of the same rows gives the same counts, and at least half of the bins of the larger side are in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fewbit.errors import NonFiniteError
from fewbit.numerics.namespace import Array, array_namespace, is_torch, to_numpy

#: Bins on each side of 0: 2,048 at least are in use on the side of the largest magnitude.
SIDE = 4096
#: R is no smaller: below it numbers count as 0.
_LEAST = 2.0**-100


@dataclass(slots=True)
class Histogram:
    """Counts of numbers by value, with their extremes."""

    #: Of a convolution it takes the input itself, channels last.
    of_rows: ClassVar[bool] = False

    #: int64 (2 * SIDE,).
    counts: np.ndarray[Any, Any]
    #: R; 0 before the first number that is not 0.
    reach: float = 0.0
    low: float = float("inf")
    high: float = -float("inf")
    #: Numbers seen.
    count: int = 0

    @classmethod
    def init(cls, width: int, like: Array) -> Histogram:  # noqa: ARG003
        """Return the statistic of no numbers."""
        return cls(np.zeros(2 * SIDE, dtype=np.int64))

    def update(self, rows: Array) -> None:
        """Take in all numbers of an array.

        Raises:
            NonFiniteError: one is NaN or infinite.

        """
        if 0 in rows.shape:
            return
        xp = array_namespace(rows)
        rows = xp.astype(xp.reshape(rows, (-1,)), xp.float32, copy=False)
        low, high = float(xp.min(rows)), float(xp.max(rows))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise NonFiniteError("its inputs hold NaN or infinity; look upstream")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._widen(_reach(max(-low, high)))
        self.counts += _binned(rows, self.reach)
        self.count += int(rows.shape[0])

    def merge(self, other: Histogram) -> None:
        """Take in what `other` has seen."""
        wider = Histogram(other.counts.copy(), other.reach)
        self._widen(other.reach)
        wider._widen(self.reach)
        self.counts += wider.counts
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.count += other.count

    def result(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return the middles of the bins, float32, and their counts, both (2 * SIDE,)."""
        width = max(self.reach, _LEAST) / SIDE
        return ((np.arange(-SIDE, SIDE) + 0.5) * width).astype(np.float32), self.counts

    def _widen(self, reach: float) -> None:
        while 0.0 < self.reach < reach:
            # A bin of the new range holds two of the old, and what was on one side stays there.
            pairs = self.counts.reshape(2, SIDE // 2, 2).sum(2)
            self.counts = np.zeros_like(self.counts)
            self.counts[SIDE // 2 : SIDE], self.counts[SIDE : SIDE + SIDE // 2] = pairs
            self.reach *= 2.0
        self.reach = max(self.reach, reach)


def _reach(largest: float) -> float:
    """Return the least power of two above `largest`, or 0 for 0."""
    return float(2.0 ** np.frexp(max(largest, _LEAST))[1]) if largest > 0.0 else 0.0


def _binned(rows: Array, reach: float) -> np.ndarray[Any, Any]:
    if reach == 0.0:  # all numbers are 0: they belong to the first bin of the upper side
        counts = np.zeros(2 * SIDE, dtype=np.int64)
        counts[SIDE] = rows.shape[0]
        return counts
    if is_torch(rows):
        place = (rows * (SIDE / reach)).floor_().long().add_(SIDE)
        return np.asarray(place.bincount(minlength=2 * SIDE).cpu())
    place = np.floor(to_numpy(rows) * np.float32(SIDE / reach)).astype(np.int64) + SIDE
    return np.bincount(place, minlength=2 * SIDE)
