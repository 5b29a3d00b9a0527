"""Means of the numbers of rows: (1 / N) sum over rows of x, what a bias makes up for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fewbit.errors import NonFiniteError
from fewbit.numerics.namespace import Array, array_namespace, device
from fewbit.statistics.row_sum import RowSum


@dataclass(slots=True)
class Mean(RowSum):
    """Sum of rows, float64 (width,), and how many there were."""

    @classmethod
    def init(cls, width: int, like: Array) -> Mean:
        """Return the statistic of no rows of `width` numbers, in the framework and on the device of `like`."""
        xp = array_namespace(like)
        return cls(xp.zeros((width,), dtype=xp.float64, device=device(like)))

    @classmethod
    def of_groups(cls, width: int, groups: int, like: Array) -> Mean:
        """Return the statistic of rows with `groups` parts of `width` numbers."""
        return cls.init(width * groups, like)

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return int(self.total.shape[0])

    def update(self, rows: Array) -> None:
        """Add the rows of an array (..., width)."""
        xp = array_namespace(rows)
        rows = xp.reshape(rows, (-1, self.width))
        self.total += xp.sum(rows, axis=0, dtype=xp.float64)
        self.count += int(rows.shape[0])

    def divided(self, factors: Any) -> Mean:
        """Return the means of the same rows with feature j divided by `factors[j]`, float64 (width,) of NumPy."""
        xp = array_namespace(self.total)
        return Mean(self.total / xp.asarray(factors, device=device(self.total)), self.count)

    def less(self, shift: Any) -> Mean:
        """Return the means of the same rows with `shift[j]`, float64 (width,) of NumPy, taken off feature j."""
        xp = array_namespace(self.total)
        return Mean(self.total - self.count * xp.asarray(shift, device=device(self.total)), self.count)

    def result(self) -> Array:
        """Return the means, float64 (width,); zeros when nothing was seen.

        Raises:
            NonFiniteError: one is NaN or infinite.

        """
        xp = array_namespace(self.total)
        if not bool(xp.all(xp.isfinite(self.total))):
            raise NonFiniteError("its inputs hold NaN or infinity; look upstream")
        return self.total / max(self.count, 1)
