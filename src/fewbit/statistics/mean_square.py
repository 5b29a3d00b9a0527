"""Mean squares of the features of a layer's input: h_j = (1 / N) sum over rows of x_j^2.

The diagonal of the second moment; what an importance matrix holds, as llama.cpp's tools/imatrix gathers it.
"""

from __future__ import annotations

from dataclasses import dataclass

from fewbit.errors import NonFiniteError
from fewbit.numerics.namespace import Array, array_namespace, device
from fewbit.statistics.row_sum import RowSum


@dataclass(slots=True)
class MeanSquare(RowSum):
    """Sum of squares of rows, float64 (width,), of grouped convolutions (groups, n), and how many rows there were."""

    @classmethod
    def init(cls, width: int, like: Array) -> MeanSquare:
        """Return the statistic of no rows of `width` numbers, in the framework and on the device of `like`."""
        xp = array_namespace(like)
        return cls(xp.zeros((width,), dtype=xp.float64, device=device(like)))

    @classmethod
    def of_groups(cls, width: int, groups: int, like: Array) -> MeanSquare:
        """Return the statistic of rows with `groups` parts of `width` numbers."""
        xp = array_namespace(like)
        return cls(xp.zeros((groups, width), dtype=xp.float64, device=device(like)))

    def update(self, rows: Array) -> None:
        """Add the rows of an array (..., width)."""
        xp = array_namespace(rows)
        rows = xp.astype(xp.reshape(rows, (-1, *self.total.shape)), xp.float32, copy=False)
        self.total += xp.sum(rows * rows, axis=0, dtype=xp.float64)
        self.count += int(rows.shape[0])

    def result(self) -> Array:
        """Return the mean squares, float64 of the shape of the sum; zeros when nothing was seen.

        Raises:
            NonFiniteError: one is NaN or infinite.

        """
        xp = array_namespace(self.total)
        if not bool(xp.all(xp.isfinite(self.total))):
            raise NonFiniteError("its inputs hold NaN or infinity, or numbers whose square overflows; look upstream")
        return self.total / max(self.count, 1)
