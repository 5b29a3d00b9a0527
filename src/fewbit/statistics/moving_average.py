"""Extremes of each batch, averaged with less and less weight for older ones: low <- low + c (low of batch - low).

It forgets: a rare outlier of one batch fades. Source: arXiv 1712.05877, section 3.1, there for training. What is kept
are the bounds of each batch in their order, so that any cut of the same batches gives the same average.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from fewbit.errors import NonFiniteError
from fewbit.numerics.namespace import Array, array_namespace

#: Weight of a new batch.
_NEW = 0.1


@dataclass(slots=True)
class MovingAverage:
    """Averaged extremes of all numbers of an input; they depend on the order of the batches."""

    #: Of a convolution it takes the input itself, channels last.
    of_rows: ClassVar[bool] = False

    #: Least and largest number of each batch.
    bounds: list[tuple[float, float]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Batches seen."""
        return len(self.bounds)

    @classmethod
    def init(cls, width: int, like: Array) -> MovingAverage:  # noqa: ARG003
        """Return the statistic of no batch."""
        return cls()

    def update(self, rows: Array) -> None:
        """Take in a batch.

        Raises:
            NonFiniteError: a number is NaN or infinite.

        """
        if 0 in rows.shape:
            return
        xp = array_namespace(rows)
        low, high = float(xp.min(rows)), float(xp.max(rows))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise NonFiniteError("its inputs hold NaN or infinity; look upstream")
        self.bounds.append((low, high))

    def merge(self, other: MovingAverage) -> None:
        """Take in what `other` has seen, as batches that come after."""
        self.bounds += other.bounds

    def result(self) -> tuple[float, float]:
        """Return the bounds; 0 of no batch."""
        low, high = self.bounds[0] if self.bounds else (0.0, 0.0)
        for own_low, own_high in self.bounds[1:]:
            low += _NEW * (own_low - low)
            high += _NEW * (own_high - high)
        return low, high
