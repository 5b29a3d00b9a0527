"""Extremes of each batch, averaged with less and less weight for older ones: low <- low + c (low of batch - low).

It forgets: a rare outlier of one batch fades. Source: arXiv 1712.05877, section 3.1, there for training.
"""

from __future__ import annotations

from dataclasses import dataclass
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

    low: float = 0.0
    high: float = 0.0
    #: Batches seen.
    count: int = 0

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
        new = _NEW if self.count else 1.0
        self.low += new * (low - self.low)
        self.high += new * (high - self.high)
        self.count += 1

    def merge(self, other: MovingAverage) -> None:
        """Take in what `other` has seen, by the batches of each."""
        whole = max(self.count + other.count, 1)
        self.low += (other.low - self.low) * other.count / whole
        self.high += (other.high - self.high) * other.count / whole
        self.count += other.count

    def result(self) -> tuple[float, float]:
        """Return the bounds."""
        return self.low, self.high
