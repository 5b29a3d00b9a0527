"""Keep the best of trial bounds, box by box, by the squared error that they leave on the grid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

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

    def improve(self, best: Best, trials: Iterable[tuple[Array, Array]]) -> Best:
        """Return, box by box, the best of `best` and of the trials."""
        xp = array_namespace(self.boxes)
        for low, high in trials:
            trial = self.start(low, high)
            better = trial[2] < best[2]
            best = tuple(xp.where(better, new, old) for new, old in zip(trial, best, strict=True))
        return best
