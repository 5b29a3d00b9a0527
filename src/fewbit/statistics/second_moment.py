"""Second moments of a layer's input: H = (1 / N) sum over rows of x x^T, what GPTQ calls the Hessian; also relative.

Accumulated in float32, a batch of rows at a time, upper triangle only: products of column panels (i, j >= i).
Source: GPTQ, arXiv 2210.17323, section 3. Relative: of x / rms(x), so that every token counts alike.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fewbit.errors import NonFiniteError
from fewbit.numerics.namespace import Array, array_namespace, device, is_torch
from fewbit.statistics.grouped_moment import GroupedMoment
from fewbit.statistics.row_power import of_equal_power
from fewbit.statistics.row_sum import RowSum

_T = TypeVar("_T")

#: Columns of a panel: small enough to leave out most of the lower triangle, large enough for fast products.
_PANEL = 256


@dataclass(slots=True)
class SecondMoment(RowSum):
    """Sum of outer products of rows, and how many there were; float32 (width, width).

    Only entries on and above the diagonal panels are filled.
    """

    #: The result and what was made of it, until more rows come.
    _derived: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def init(cls, width: int, like: Array) -> SecondMoment:
        """Return the statistic of no rows of `width` numbers, in the framework and on the device of `like`."""
        xp = array_namespace(like)
        return cls(xp.zeros((width, width), dtype=xp.float32, device=device(like)))

    @classmethod
    def identity(cls, width: int, like: Array) -> SecondMoment:
        """Return H = I, of inputs that nothing is known of, in the framework and on the device of `like`."""
        xp = array_namespace(like)
        return cls(xp.eye(width, dtype=xp.float32, device=device(like)), 1)

    @classmethod
    def of_groups(cls, width: int, groups: int, like: Array) -> GroupedMoment:
        """Return the statistic of rows with `groups` parts of `width` numbers that are multiplied apart."""
        return GroupedMoment.init(width, groups, like)

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
            if is_torch(rows):  # adds while it multiplies
                self.total[start:stop, start:].addmm_(rows[:, start:stop].T, rows[:, start:])
            else:
                self.total[start:stop, start:] += xp.matmul(rows[:, start:stop].T, rows[:, start:])
        self.count += int(rows.shape[0])
        self._derived.clear()

    def merge(self, other: RowSum) -> None:
        """Add what `other` has seen."""
        RowSum.merge(self, other)
        self._derived.clear()

    def result(self) -> Array:
        """Return H as float32 (width, width), symmetric; zeros when nothing was seen. Not to be written into.

        Raises:
            NonFiniteError: it holds NaN or infinity.

        """
        if "result" not in self._derived:
            self._derived["result"] = self._mean()
        return self._derived["result"]

    def derive(self, key: Hashable, make: Callable[[Array], _T]) -> _T:
        """Return `make(result())`, made once for all layers that share this input; `key` tells what it is."""
        if ("derived", key) not in self._derived:
            self._derived["derived", key] = make(self.result())
        made: _T = self._derived["derived", key]
        return made

    def _mean(self) -> Array:
        xp = array_namespace(self.total)
        moment = self.total / max(self.count, 1)
        for start in range(0, self.width, _PANEL):
            stop = min(start + _PANEL, self.width)
            corner = moment[start:stop, start:stop]
            moment[start:stop, start:stop] = xp.triu(corner) + xp.triu(corner, k=1).T
            moment[stop:, start:stop] = moment[start:stop, stop:].T
        if not bool(xp.isfinite(xp.min(moment)) & xp.isfinite(xp.max(moment))):
            raise NonFiniteError("its inputs hold NaN or infinity, or numbers whose square overflows; look upstream")
        return moment


@dataclass(slots=True)
class RelativeSecondMoment(SecondMoment):
    """The second moment of rows scaled to a mean square of 1.

    In a transformer a few tokens, mostly the first, have activations a thousand times as large as the others; what they
    add to the residual stream is divided by its size again. Unscaled they decide alone where errors may go.
    """

    @classmethod
    def of_groups(cls, width: int, groups: int, like: Array) -> GroupedMoment:
        """Return the statistic of such rows with `groups` parts of `width` numbers that are multiplied apart."""
        return GroupedMoment.init(width, groups, like, relative=True)

    def update(self, rows: Array) -> None:
        """Add the rows of an array (..., width), each divided by its root mean square.

        Rows of zeros, and of numbers whose squares are 0 in float32, add nothing.

        Raises:
            NonFiniteError: when read, of rows that hold NaN or infinity, or whose square overflows float32.

        """
        xp = array_namespace(rows)
        SecondMoment.update(self, of_equal_power(xp.astype(xp.reshape(rows, (-1, self.width)), xp.float32, copy=False)))
