"""Bounds with the least squared error on the grid, searched by shrinking the extremes.

min over f of sum w (x - round_to_grid(x; f * bounds))^2. Both bounds shrink together; an asymmetric grid then tries
each end alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fewbit.errors import SchemeError
from fewbit.numerics.loop import whole
from fewbit.numerics.namespace import Array
from fewbit.ranges.absmax import AbsMax
from fewbit.ranges.bins import searched
from fewbit.ranges.grid import Grid
from fewbit.ranges.minmax import MinMax
from fewbit.ranges.search import Search


@dataclass(frozen=True, slots=True)
class SquaredError:
    """Search the shrink factor of each box."""

    #: Factors that are tried besides 1.
    steps: int = 32
    #: The least factor.
    smallest: float = 0.4

    def __post_init__(self) -> None:
        if not (self.steps >= 1 and 0.0 < self.smallest < 1.0):
            raise SchemeError(f"mse needs steps >= 1 and a smallest factor inside (0, 1), not {self}")

    @property
    def name(self) -> str:
        """The word for it in notation."""
        return "mse"

    @whole
    def __call__(
        self, boxes: Array, axes: tuple[int, ...], grid: Grid, weights: Array | None = None
    ) -> tuple[Array, Array]:
        """Return the best bounds found; never worse than the extremes."""
        low, high = (AbsMax() if grid.symmetric else MinMax())(boxes, axes)
        low, high, _ = Search(boxes, axes, grid, weights).shrunk(low, high, self.steps, self.smallest)
        return low, high

    @property
    def statistic(self) -> str:
        """What it wants to know of a static input."""
        return "histogram"

    def calibrated(self, seen: Any, grid: Grid) -> tuple[Array, Array]:
        """Return the best bounds for the values that were seen, each counting as often as it was."""
        return searched(self, seen, grid)
