"""Least and largest value of each feature of a layer's input.

low_j = min over rows of x_j, high_j = max over rows of x_j; merging takes the wider of both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fewbit.errors import NonFiniteError
from fewbit.numerics.namespace import Array, array_namespace, device


@dataclass(slots=True)
class Extremes:
    """Bounds by feature, and how many rows there were."""

    #: Of a convolution it takes the input itself, channels last.
    of_rows: ClassVar[bool] = False

    #: float32 (width,); +infinity before the first row.
    low: Array
    #: float32 (width,); -infinity before the first row.
    high: Array
    #: Rows seen.
    count: int = 0

    @classmethod
    def init(cls, width: int, like: Array) -> Extremes:
        """Return the statistic of no rows of `width` numbers, in the framework and on the device of `like`."""
        xp = array_namespace(like)
        low = xp.full((width,), float("inf"), dtype=xp.float32, device=device(like))
        return cls(low, -low)

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return int(self.low.shape[0])

    def update(self, rows: Array) -> None:
        """Take in the rows of an array (..., width)."""
        xp = array_namespace(rows)
        rows = xp.astype(xp.reshape(rows, (-1, self.width)), xp.float32, copy=False)
        if rows.shape[0]:
            self._widen(xp.min(rows, axis=0), xp.max(rows, axis=0))
        self.count += int(rows.shape[0])

    def merge(self, other: Extremes) -> None:
        """Take in what `other` has seen."""
        self._widen(other.low, other.high)
        self.count += other.count

    def result(self) -> tuple[Array, Array]:
        """Return the bounds, each float32 (width,).

        Raises:
            NonFiniteError: a row held NaN or infinity.

        """
        xp = array_namespace(self.low)
        if self.count and not bool(xp.all(xp.isfinite(self.low)) & xp.all(xp.isfinite(self.high))):
            raise NonFiniteError("its inputs hold NaN or infinity; look upstream")
        return self.low, self.high

    def _widen(self, low: Array, high: Array) -> None:
        xp = array_namespace(low)
        # Asked this way round, NaN stays.
        self.low = xp.where(self.low <= low, self.low, low)
        self.high = xp.where(self.high >= high, self.high, high)
