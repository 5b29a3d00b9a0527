"""Scale and zero point by alternating least squares, from several starts.

Given the codes, x = s * u + c is linear in s and c with u = code - zero point: solve it, shift the zero point by c / s,
round again. Starts are what shrinking the extremes finds, and the extremes times some factors; the best wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fewbit.errors import SchemeError
from fewbit.numerics.loop import repeat, whole
from fewbit.numerics.namespace import Array, array_namespace, constants_like, settled
from fewbit.numerics.summation import tree_sum
from fewbit.ranges.absmax import AbsMax
from fewbit.ranges.bins import searched
from fewbit.ranges.grid import Grid, pieces
from fewbit.ranges.minmax import MinMax
from fewbit.ranges.search import Best, Search


@dataclass(frozen=True, slots=True)
class LeastSquares:
    """Alternate between codes and parameters."""

    #: Shrink factors that are started from.
    starts: int = 12
    #: Alternations from each start.
    rounds: int = 6
    #: The least factor.
    smallest: float = 0.4

    def __post_init__(self) -> None:
        if not (self.starts >= 1 and self.rounds >= 1 and 0.0 < self.smallest < 1.0):
            raise SchemeError(f"lsq needs starts and rounds >= 1 and a smallest factor inside (0, 1), not {self}")

    @property
    def name(self) -> str:
        """The word for it in notation."""
        return "lsq"

    @whole
    def __call__(
        self, boxes: Array, axes: tuple[int, ...], grid: Grid, weights: Array | None = None
    ) -> tuple[Array, Array]:
        """Return the best bounds found; never worse than the extremes."""
        low, high = (AbsMax() if grid.symmetric else MinMax())(boxes, axes)
        search = Search(boxes, axes, grid, weights)
        factors = [1.0 - (1.0 - self.smallest) * start / self.starts for start in range(self.starts)]
        table = constants_like(factors, "float32", boxes)

        def alternate(_: Any, state: tuple[Array, ...]) -> tuple[Array, ...]:
            trial = _refit(search, state[3], state[4])
            return *search.improve((state[0], state[1], state[2]), *trial), *trial

        def from_start(start: Any, best: Best) -> Best:
            state = repeat(self.rounds, alternate, (*best, low * table[start], high * table[start]))
            return state[0], state[1], state[2]

        best = search.shrunk(low, high, 2 * self.starts, self.smallest)
        best = repeat(self.rounds, alternate, (*best, best[0], best[1]))[:3]
        best = repeat(self.starts, from_start, best)
        return best[0], best[1]

    @property
    def statistic(self) -> str:
        """What it wants to know of a static input."""
        return "histogram"

    def calibrated(self, seen: Any, grid: Grid) -> tuple[Array, Array]:
        """Return the best bounds for the values that were seen, each counting as often as it was."""
        return searched(self, seen, grid)


def _refit(search: Search, low: Array, high: Array) -> tuple[Array, Array]:
    """Return the bounds of the scale and zero point that fit the codes of the bounds `low` and `high` best."""
    grid = search.grid
    scale, zero = grid.parameters(low, high)
    xp = array_namespace(scale)
    count, units, boxes, squares, products = _sums(search, scale, zero)
    if zero is None:
        fitted = products / xp.where(squares > 0.0, squares, xp.ones_like(squares))
        high = xp.where(fitted > 0.0, fitted, scale) * grid.format.reach
        return -high, high
    count = xp.where(count > 0.0, count, xp.ones_like(count))
    spread = squares - settled(units * units / count)
    slope = (products - settled(units * boxes / count)) / xp.where(spread > 0.0, spread, xp.ones_like(spread))
    slope = xp.where((slope > 0.0) & (spread > 0.0), slope, scale)
    qmin, qmax = grid.integer.qmin, grid.integer.qmax
    moved = zero - (boxes - settled(slope * units)) / (settled(slope * count))
    if not grid.float_zero:
        moved = xp.clip(xp.round(moved), qmin, qmax)
    return (qmin - moved) * slope, (qmax - moved) * slope


def _sums(search: Search, scale: Array, zero: Array | None) -> list[Array]:
    """Return the weighted sums over each box of 1, u, x, u^2 and x u."""
    sums: list[Array] = []
    for part, weights in pieces(search.boxes, search.axes, search.weights):
        units = search.grid.units(part, scale, zero)
        terms = (array_namespace(part).ones_like(part), units, part, units * units, part * units)
        found = [tree_sum(term if weights is None else settled(term) * weights, search.axes) for term in terms]
        sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
    return sums
