"""Second moments of a layer's input: H = (1 / N) sum over rows of x x^T, what GPTQ calls the Hessian.

Accumulated in float32, a batch of rows at a time, upper triangle only: products of column panels (i, j >= i).
Source: GPTQ, arXiv 2210.17323, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

from fewbit.errors import NonFiniteError
from fewbit.numerics.namespace import Array, array_namespace, device

#: Columns of a panel: small enough to leave out most of the lower triangle, large enough for fast products.
_PANEL = 192


@dataclass(slots=True)
class SecondMoment:
    """Sum of outer products of rows, and how many there were."""

    #: float32 (width, width); only entries on and above the diagonal panels are filled.
    total: Array
    #: Rows seen.
    count: int = 0

    @classmethod
    def init(cls, width: int, like: Array) -> SecondMoment:
        """Return the statistic of no rows of `width` numbers, in the framework and on the device of `like`."""
        xp = array_namespace(like)
        return cls(xp.zeros((width, width), dtype=xp.float32, device=device(like)))

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return int(self.total.shape[0])

    def update(self, rows: Array) -> None:
        """Add the rows of an array (..., width).

        Raises:
            NonFiniteError: a sum is NaN or infinite: a row was, or its square overflows float32.

        """
        xp = array_namespace(rows)
        rows = xp.astype(xp.reshape(rows, (-1, self.width)), xp.float32, copy=False)
        for start in range(0, self.width, _PANEL):
            stop = min(start + _PANEL, self.width)
            product = xp.matmul(rows[:, start:stop].T, rows[:, start:])
            self.total[start:stop, start:] += product
        self.count += int(rows.shape[0])

    def merge(self, other: SecondMoment) -> None:
        """Add what `other` has seen."""
        self.total += other.total
        self.count += other.count

    def result(self) -> Array:
        """Return H as float32 (width, width), symmetric; zeros when nothing was seen.

        Raises:
            NonFiniteError: it holds NaN or infinity.

        """
        xp = array_namespace(self.total)
        upper = xp.triu(self.total)
        moment = (upper + xp.triu(self.total, k=1).T) / max(self.count, 1)
        if not bool(xp.all(xp.isfinite(moment))):
            raise NonFiniteError("its inputs hold NaN or infinity, or numbers whose square overflows; look upstream")
        return moment
