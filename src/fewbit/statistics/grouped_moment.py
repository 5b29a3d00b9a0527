"""Second moments of the inputs of a grouped convolution: each group of channels has one of its own, (groups, n, n).

The rows (positions, groups * n) hold the groups side by side; see `second_moment.py` for what is accumulated.
"""

from __future__ import annotations

from dataclasses import dataclass

from fewbit.errors import NonFiniteError
from fewbit.numerics.namespace import Array, array_namespace, device
from fewbit.statistics.row_power import of_equal_power
from fewbit.statistics.row_sum import RowSum

#: Rows that are turned at once: batched products want them with the groups in front.
_AT_ONCE = 4096


@dataclass(slots=True)
class GroupedMoment(RowSum):
    """Sums of outer products of the parts of rows, float32 (groups, n, n), and how many rows there were."""

    #: Whether rows are scaled to a mean square of 1, each as a whole.
    relative: bool = False

    @classmethod
    def init(cls, width: int, groups: int, like: Array, *, relative: bool = False) -> GroupedMoment:
        """Return the statistic of no rows of `groups` parts of `width` numbers, in the framework of `like`."""
        xp = array_namespace(like)
        return cls(xp.zeros((groups, width, width), dtype=xp.float32, device=device(like)), relative=relative)

    @property
    def groups(self) -> int:
        """Parts of a row."""
        return int(self.total.shape[0])

    @property
    def width(self) -> int:
        """Numbers of a part."""
        return int(self.total.shape[1])

    def update(self, rows: Array) -> None:
        """Add the rows of an array (..., groups * width).

        Raises:
            NonFiniteError: when read, of rows that hold NaN or infinity, or whose squares overflow.

        """
        xp = array_namespace(rows)
        rows = xp.astype(xp.reshape(rows, (-1, self.groups * self.width)), xp.float32, copy=False)
        if self.relative:
            rows = of_equal_power(rows)
        for start in range(0, rows.shape[0], _AT_ONCE):
            own = rows[start : min(start + _AT_ONCE, rows.shape[0]), :]
            parts = xp.permute_dims(xp.reshape(own, (-1, self.groups, self.width)), (1, 0, 2))
            self.total += xp.matmul(xp.permute_dims(parts, (0, 2, 1)), parts)
        self.count += int(rows.shape[0])

    def result(self) -> Array:
        """Return float32 (groups, n, n), each symmetric; zeros when nothing was seen. Not to be written into.

        Raises:
            NonFiniteError: it holds NaN or infinity.

        """
        xp = array_namespace(self.total)
        both = self.total + xp.permute_dims(self.total, (0, 2, 1))  # products need not be symmetric to the last bit
        moment = both * (0.5 / max(self.count, 1))
        if not bool(xp.isfinite(xp.min(moment)) & xp.isfinite(xp.max(moment))):
            raise NonFiniteError("its inputs hold NaN or infinity, or numbers whose square overflows; look upstream")
        return moment
