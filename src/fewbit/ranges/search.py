"""Keep the best of trial bounds, box by box, by the squared error that they leave on the grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from fewbit.numerics.loop import repeat
from fewbit.numerics.namespace import Array, array_namespace, constants_like
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

    def shrunk(self, low: Array, high: Array, steps: int, smallest: float) -> Best:
        """Return the best of the extremes shrunk by factors down to `smallest`; when asymmetric, each end alone too."""
        levels, reach = self.grid.format.levels, self.grid.format.reach
        # A full-range symmetric grid clips its largest positive value; a slightly wider range may be better.
        widest = (levels[-1] + 1.0) / reach if self.grid.symmetric else 1.0
        factors = [min(max(widest, 1.0), 1.1), *(1.0 - (1.0 - smallest) * step / steps for step in range(1, steps + 1))]
        table, count = constants_like(factors, "float32", self.boxes), len(factors)
        best = self.improve_over(self.start(low, high), count, lambda i, _: (low * table[i], high * table[i]))
        if self.grid.symmetric:
            return best
        both = best[:2]
        best = self.improve_over(best, count, lambda i, _: (both[0], both[1] * table[i]))
        upper = best[:2]
        return self.improve_over(best, count, lambda i, _: (upper[0] * table[i], upper[1]))
