"""Second moments in which a row counts by what an error of the layer's output there does to the loss.

H = (1 / N) sum of c_t x_t x_t^T with c_t = sqrt(g_t / rms(x_t)^2), g_t the mean square of the loss's gradient at output
t: half way from rows that count alike to GuidedQuant, arXiv 2505.07004, equation 7, whose few tokens decide too much.
"""

from __future__ import annotations

from dataclasses import dataclass

from fewbit.numerics.namespace import Array, array_namespace
from fewbit.statistics.row_power import of_equal_power
from fewbit.statistics.row_sum import RowSum
from fewbit.statistics.second_moment import RelativeSecondMoment, SecondMoment


@dataclass(slots=True)
class GuidedSecondMoment(RelativeSecondMoment):
    """Rows weighted by gradients where those are known; else rows that count alike."""

    #: Whether any row came with a weight.
    guided: bool = False

    def update(self, rows: Array, weights: Array | None = None) -> None:
        """Add the rows of an array (..., width), with `weights` (rows,) of mean 1, the mean squares of the gradient.

        Raises:
            NonFiniteError: when read, of rows that hold NaN or infinity, or whose square overflows float32.

        """
        if weights is None:
            RelativeSecondMoment.update(self, rows)
            return
        xp = array_namespace(rows)
        rows = xp.astype(xp.reshape(rows, (-1, self.width)), xp.float32, copy=False)
        rms = xp.sqrt(xp.vecdot(rows, rows) / self.width)
        # (x / rms) sqrt(rms sqrt(g)) = x (g / rms^2)^(1/4), whose square has the weight c.
        SecondMoment.update(self, of_equal_power(rows) * xp.sqrt(rms * xp.sqrt(weights))[:, None])
        self.guided = True

    def merge(self, other: RowSum) -> None:
        """Add what `other` has seen."""
        SecondMoment.merge(self, other)
        self.guided |= isinstance(other, GuidedSecondMoment) and other.guided
