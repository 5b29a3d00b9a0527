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

    def merge(self, other: RowSum) -> None:
        """Add what `other` has seen."""
        self.total += other.total
        self.count += other.count
