"""How a scale and zero point are chosen: from values in, to a low and a high bound out.

Every range method is a frozen dataclass called with `(boxes, axes, grid, weights)`; the bounds it returns keep the
axes as 1 and hold 0: `low <= 0 <= high` (least squares under a float zero point may leave 0 out).
"""

from __future__ import annotations

from typing import Protocol

from fewbit.numerics.namespace import Array
from fewbit.ranges.grid import Grid

#: Range methods by the word for them in notation.
RANGES = {
    "absmax": "fewbit.ranges.absmax:AbsMax",
    "minmax": "fewbit.ranges.minmax:MinMax",
    "percentile": "fewbit.ranges.percentile:Percentile",
    "mse": "fewbit.ranges.squared_error:SquaredError",
    "lsq": "fewbit.ranges.least_squares:LeastSquares",
    "entropy": "fewbit.ranges.entropy:Entropy",
}


class RangeMethod(Protocol):
    """How the bounds of each box are chosen."""

    @property
    def name(self) -> str:
        """The word for it in notation."""

    def __call__(
        self, boxes: Array, axes: tuple[int, ...], grid: Grid, weights: Array | None = None
    ) -> tuple[Array, Array]:
        """Return the lower and upper bound of `boxes` over `axes`, kept as 1; `weights` broadcast to `boxes`."""
