"""How a scale and zero point are chosen: from values, or from what a statistic has seen of them, to two bounds.

Every range method is a frozen dataclass called with `(boxes, axes, grid, weights)`; the bounds it returns keep the
axes as 1 and hold 0: `low <= 0 <= high` (least squares under a float zero point may leave 0 out).
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from fewbit.numerics.namespace import Array
from fewbit.ranges.grid import Grid

#: Range methods by the word for them in notation.
RANGES = {
    "absmax": "fewbit.ranges.absmax:AbsMax",
    "minmax": "fewbit.ranges.minmax:MinMax",
    "percentile": "fewbit.ranges.percentile:Percentile",
    "mse": "fewbit.ranges.squared_error:SquaredError",
    "clip": "fewbit.ranges.output_clip:OutputClip",
    "lsq": "fewbit.ranges.least_squares:LeastSquares",
    "entropy": "fewbit.ranges.entropy:Entropy",
    "average": "fewbit.ranges.average:Average",
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

    @property
    def statistic(self) -> str | None:
        """Name of the statistic of an input that `calibrated` reads; `None`: it needs none."""

    def calibrated(self, seen: Any, grid: Grid) -> tuple[Array, Array]:
        """Return the bounds for what that statistic has seen: of all numbers, shape (), or a pair for each channel."""


@runtime_checkable
class OutputRange(Protocol):
    """A range method for weights that looks at the output of the layer."""

    @property
    def input_statistic(self) -> str:
        """Name of the statistic of the layer's input that it reads, a second moment."""

    def for_inputs(self, boxes: Array, grid: Grid, moments: Array) -> tuple[Array, Array]:
        """Return the bounds of a matrix in boxes (n0, b0, n1, b1); `moments` (n1, b1, b1) are those of its columns."""
