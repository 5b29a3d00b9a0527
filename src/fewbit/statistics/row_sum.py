"""A sum over rows of what each of them adds, and how many there were: what a mean over all rows is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fewbit.numerics.namespace import Array


@dataclass(slots=True)
class RowSum:
    """A sum and its number of rows."""

    #: Of a convolution it takes the patches that the weight is multiplied with.
    of_rows: ClassVar[bool] = True

    #: In the framework and on the device of the rows.
    total: Array
    #: Rows seen.
    count: int = 0
    #: Rows that it takes to tell what the inputs are like, where it may get too few.
    least: int = 0

    @property
    def too_few(self) -> str | None:
        """Why the rows do not stand for the inputs of the layer, or `None`."""
        if not self.count:
            return "no calibration input reached it"
        return f"{self.count} tokens reached it, fewer than {self.least}" if self.count < self.least else None

    def merge(self, other: RowSum) -> None:
        """Add what `other` has seen."""
        self.total += other.total
        self.count += other.count
