"""A histogram of all numbers of a layer's input: bounded memory, no second pass, fine at every magnitude.

A bin holds the float32 numbers that agree in sign, exponent and the first 10 bits of the mantissa, so its width is at
most 1/1024 of its place: one outlier takes nothing from the others. What lies `BINADES` powers of two below the
largest counts as 0. Any cut of the same rows gives the same counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from fewbit.errors import NonFiniteError
from fewbit.numerics.namespace import Array, array_namespace, is_torch, to_numpy

#: Powers of two that are told apart, and bins of each.
BINADES, PER_BINADE = 24, 1024
#: Bits of the mantissa that are not told apart.
_REST = 13

Counts = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(slots=True)
class Histogram:
    """Counts of numbers by value, with their extremes."""

    #: Of the input itself, channels last, not of patches.
    of_rows: ClassVar[bool] = False

    #: Of positive and of negative numbers by growing magnitude, (2, BINADES * PER_BINADE).
    counts: Counts = field(default_factory=lambda: np.zeros((2, BINADES * PER_BINADE), dtype=np.int64))
    #: Numbers that are 0 or count as 0.
    zeros: int = 0
    #: Biased exponent of the largest magnitude; less than `BINADES` is not needed.
    top: int = BINADES
    low: float = float("inf")
    high: float = -float("inf")
    #: Numbers seen.
    count: int = 0

    @classmethod
    def init(cls, width: int, like: Array) -> Histogram:  # noqa: ARG003
        """Return the statistic of no numbers."""
        return cls()

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
        self._rise(int(np.float32(max(-low, high)).view(np.int32)) >> 23)
        found = _counted(rows, (self.top - BINADES + 1) * PER_BINADE)
        self.zeros += int(found[0, 0] + found[1, 0])
        self.counts += found[:, 1:]
        self.count += int(rows.shape[0])

    def merge(self, other: Histogram) -> None:
        """Take in what `other` has seen."""
        own = Histogram(counts=other.counts, zeros=other.zeros, top=other.top)
        top = max(self.top, other.top)
        self._rise(top)
        own._rise(top)
        self.counts = self.counts + own.counts
        self.zeros += own.zeros
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.count += other.count

    def result(self) -> tuple[np.ndarray[Any, Any], Counts]:
        """Return the middles of the bins that hold anything in rising order, float32, and their counts."""
        first = (self.top - BINADES + 1) * PER_BINADE
        patterns = (np.arange(first, first + BINADES * PER_BINADE, dtype=np.int64) << _REST) + (1 << (_REST - 1))
        magnitudes = patterns.astype(np.int32).view(np.float32)
        middles = np.concatenate([-magnitudes[::-1], np.zeros(1, np.float32), magnitudes])
        counts = np.concatenate([self.counts[1, ::-1], [self.zeros], self.counts[0]])
        return middles[counts > 0], counts[counts > 0]

    def _rise(self, top: int) -> None:
        """Make room for numbers with the exponent `top`; what falls out below counts as 0."""
        gone = min(max(top - self.top, 0), BINADES) * PER_BINADE
        if gone:
            self.zeros += int(self.counts[:, :gone].sum())
            self.counts = np.concatenate([self.counts[:, gone:], np.zeros((2, gone), dtype=np.int64)], axis=1)
        self.top = max(self.top, top)


def _counted(rows: Array, first: int) -> Counts:
    """Return counts of positive and negative numbers (2, 1 + bins), before the bins of those below pattern `first`."""
    bins = BINADES * PER_BINADE + 1
    if is_torch(rows):
        import torch

        bits = rows.contiguous().view(torch.int32)
        place = ((bits & 0x7FFFFFFF) >> _REST).sub_(first - 1).clamp_(min=0)
        return np.asarray((place + (bits < 0) * bins).bincount(minlength=2 * bins).cpu()).reshape(2, bins)
    bits = np.ascontiguousarray(to_numpy(rows)).view(np.int32)
    place = np.maximum(((bits & 0x7FFFFFFF) >> _REST) - (first - 1), 0)
    return np.bincount(place + (bits < 0) * bins, minlength=2 * bins).reshape(2, bins).astype(np.int64)
