"""Largest and mean magnitude of each feature of a layer's input: max |x_j| and mean |x_j| over rows.

What SmoothQuant (arXiv 2211.10438) and AWQ (arXiv 2306.00978) scale channels by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fewbit.errors import NonFiniteError
from fewbit.numerics.namespace import Array, array_namespace, to_numpy

Magnitudes = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(slots=True)
class ChannelMagnitude:
    """Magnitudes by feature, and how many rows there were."""

    #: Of a convolution it takes the input itself, channels last.
    of_rows: ClassVar[bool] = False

    #: float64 (width,); 0 before the first row.
    largest: Magnitudes
    #: float64 (width,), the sum over rows.
    total: Magnitudes
    #: Rows seen.
    count: int = 0

    @classmethod
    def init(cls, width: int, like: Array) -> ChannelMagnitude:  # noqa: ARG003
        """Return the statistic of no rows of `width` numbers."""
        return cls(np.zeros(width), np.zeros(width))

    def update(self, rows: Array) -> None:
        """Take in the rows of an array (..., width)."""
        xp = array_namespace(rows)
        rows = xp.abs(xp.astype(xp.reshape(rows, (-1, len(self.total))), xp.float32, copy=False))
        if rows.shape[0]:
            self.largest = np.maximum(self.largest, to_numpy(xp.max(rows, axis=0)))
            self.total = self.total + to_numpy(xp.sum(rows, axis=0))
        self.count += int(rows.shape[0])

    def merge(self, other: ChannelMagnitude) -> None:
        """Take in what `other` has seen."""
        self.largest = np.maximum(self.largest, other.largest)
        self.total = self.total + other.total
        self.count += other.count

    def result(self) -> tuple[Magnitudes, Magnitudes]:
        """Return the largest and the mean magnitudes, each float64 (width,).

        Raises:
            NonFiniteError: a row held NaN or infinity.

        """
        if not np.isfinite(self.total).all():
            raise NonFiniteError("its inputs hold NaN or infinity; look upstream")
        return self.largest, self.total / max(self.count, 1)
