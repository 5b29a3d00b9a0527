"""Keep the best of trial bounds, box by box, by the squared error that they leave on the grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from fewbit.numerics.loop import repeat
from fewbit.numerics.namespace import Array, array_namespace
from fewbit.ranges.grid import Grid

#: Low bound, high bound, and the error that they leave.
Best: TypeAlias = tuple[Array, Array, Array]


@dataclass(frozen=True, slots=True)
class Search:
    """What trial bounds are tried on."""

    boxes: Array
    axes: tuple[int, ...]
    grid: Grid
    weights: Array | None

    def start(self, low: Array, high: Array) -> Best:
        """Return bounds with their error."""
        return low, high, self.grid.error(self.boxes, low, high, self.axes, self.weights)

    def improve(self, best: Best, low: Array, high: Array) -> Best:
        """Return, box by box, the better of `best` and of the bounds `low` and `high`."""
        xp = array_namespace(self.boxes)
        trial = self.start(low, high)
        better = trial[2] < best[2]
        low, high, error = (xp.where(better, new, old) for new, old in zip(trial, best, strict=True))
        return low, high, error

    def improve_over(self, best: Best, count: int, trial: Callable[[Any, Best], tuple[Array, Array]]) -> Best:
        """Return the best of `best` and of the bounds `trial(i, best so far)` for i from 0 to `count` - 1."""
        return repeat(count, lambda index, so_far: self.improve(so_far, *trial(index, so_far)), best)
