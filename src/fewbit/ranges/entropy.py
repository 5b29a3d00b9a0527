"""The clipping threshold whose quantized histogram diverges least from the original (Migacz, TensorRT, GTC 2017).

P is the histogram of |x| up to a threshold, with what lies beyond added to its last bin; Q spreads what each level
covers evenly over its bins. The widest threshold wins whose KL(P || Q) is within two standard errors of the least.

As published, bins have one width for all thresholds; merging 8 of them costs more than merging 2 wherever values recur,
which draws the threshold down, so here each threshold has as many bins a level. Q is spread over empty bins too, or all
that lies within one bin beside an outlier would be free. The least of many noisy divergences is a matter of luck, hence
the standard errors. Zeros do not count: every grid has 0 among its levels. `docs/decisions.md` has the reasons.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from fewbit.errors import SchemeError
from fewbit.numerics.counting import occurrences
from fewbit.numerics.loop import repeat, whole
from fewbit.numerics.namespace import SMALLEST_NORMAL, Array, array_namespace, constants_like, device
from fewbit.numerics.summation import tree_sum
from fewbit.ranges.bins import spread
from fewbit.ranges.grid import Grid, pieces
from fewbit.ranges.minmax import MinMax

#: Half octaves below the largest magnitude that are tried first, then eighths of an octave around the best of them.
_HALVES, _EIGHTHS = 24, 3
#: How many standard errors count as no difference.
_ERRORS = 2.0


@dataclass(frozen=True, slots=True)
class Entropy:
    """Search the threshold of each box on histograms of magnitudes."""

    #: Bins of the histogram of a large box; of a small one, about as many as it has numbers.
    bins: int = 2048

    def __post_init__(self) -> None:
        if self.bins < 256:
            raise SchemeError(f"entropy needs at least 256 bins, not {self}")

    @property
    def name(self) -> str:
        """The word for it in notation."""
        return "entropy"

    @whole
    def __call__(
        self,
        boxes: Array,
        axes: tuple[int, ...],
        grid: Grid,
        weights: Array | None = None,  # noqa: ARG002
    ) -> tuple[Array, Array]:
        """Return bounds clipped to the best threshold; an asymmetric range keeps the nearer end where it is."""
        xp = array_namespace(boxes)
        low, high = MinMax()(boxes, axes)
        amax = xp.where(-low > high, -low, high)
        levels, bins = self._histogram(prod([boxes.shape[axis] for axis in axes]), len(grid.format.levels) // 2)

        def counts(limits: Array) -> Array:
            found = [_counts(_rows(part, axes), limits, bins) for part, _ in pieces(boxes, axes, None)]
            return sum(found[1:], start=found[0])

        found = _best(xp.reshape(amax, (1, -1)), counts, levels)
        threshold = xp.reshape(found, amax.shape)
        if grid.symmetric:
            return -threshold, threshold
        return xp.where(-low > threshold, -threshold, low), xp.where(high > threshold, threshold, high)

    @property
    def statistic(self) -> str:
        """What it wants to know of a static input."""
        return "histogram"

    def calibrated(self, seen: Any, grid: Grid) -> tuple[Array, Array]:
        """Return the best threshold, within the extremes."""
        one_sided = not grid.symmetric and (seen.low >= 0.0 or seen.high <= 0.0)  # as behind a ReLU
        levels, bins = self._histogram(seen.count - seen.zeros, len(grid.format.levels) // (1 if one_sided else 2))
        amax = np.asarray([[max(-seen.low, seen.high)]], np.float32)
        end = _best(amax, lambda limits: spread(seen, float(limits[0, 0]), bins)[:, None], levels)[0, 0]
        if grid.symmetric:
            return -end, end
        return np.maximum(-end, np.float32(min(seen.low, 0.0))), np.minimum(end, np.float32(max(seen.high, 0.0)))

    def _histogram(self, size: int, levels: int) -> tuple[int, int]:
        """Return how many levels of magnitudes and how many bins `size` numbers are put into."""
        levels = min(max(levels, 2), self.bins // 2)
        return levels, levels * max(min(self.bins, size) // levels, 2)


def _best(amax: Array, counts: Any, levels: int) -> Array:
    """Return the best threshold of each box, (1, boxes); `counts(limits)` are those up to `limits`, and beyond."""
    first = [2.0 ** (-step / 2.0) for step in range(_HALVES)]
    coarse = _widest(amax, first, counts, levels)
    # The widest of them first, up to the largest magnitude, past which there is nothing to be covered.
    around = [2.0 ** (-step / 8.0) for step in range(-_EIGHTHS, _EIGHTHS + 1)]
    return _widest(coarse, around, counts, levels, amax)


def _rows(boxes: Array, axes: tuple[int, ...]) -> Array:
    """Return the magnitudes of each box in a column, (n, boxes)."""
    xp = array_namespace(boxes)
    outer = [axis for axis in range(boxes.ndim) if axis not in axes]
    size = prod([boxes.shape[axis] for axis in axes])
    return xp.reshape(xp.permute_dims(xp.abs(boxes), (*axes, *outer)), (size, -1))


def _counts(rows: Array, limits: Array, bins: int) -> Array:
    """Return how many numbers above 0 are in each of `bins` even bins up to `limits`, and beyond, (bins + 1, boxes)."""
    xp = array_namespace(rows)
    inside = xp.clip(xp.floor(rows * (1.0 / xp.clip(limits, SMALLEST_NORMAL, None)) * bins), 0.0, bins - 1.0)
    place = xp.where(rows > limits, xp.zeros_like(rows) + bins, inside)
    place = xp.where(rows > 0.0, place, xp.zeros_like(rows) + (bins + 1.0))
    boxes = rows.shape[1]
    if boxes * (bins + 2) >= 1 << 31:
        raise SchemeError(f"entropy over {boxes} boxes at once needs too large a histogram; use mse")
    column = xp.arange(boxes, dtype=xp.int32, device=device(rows))
    numbers = xp.reshape(xp.astype(place, xp.int32) * boxes + column, (-1,))
    found = xp.reshape(occurrences(numbers, (bins + 2) * boxes), (bins + 2, boxes))
    return xp.astype(found[:-1, :], xp.float32)


def _widest(center: Array, factors: list[float], counts: Any, levels: int, most: Array | None = None) -> Array:
    """Return the widest of `center * factors`, in falling order and at most `most`, among those that diverge least."""
    xp = array_namespace(center)
    table, count = constants_like(factors, "float32", center), len(factors)
    most = center if most is None else most
    number = xp.reshape(xp.arange(count, dtype=xp.int32, device=device(center)), (-1, 1))
    nothing = xp.zeros_like(center) + xp.zeros_like(xp.reshape(table, (-1, 1)))

    def limits(factor: Array) -> Array:
        return xp.where(center * factor < most, center * factor, most)

    def tried(index: Any, so_far: tuple[Array, ...]) -> tuple[Array, ...]:
        found = _divergence(counts(limits(table[index])), levels)
        return tuple(xp.where(number == index, new, old) for new, old in zip(found, so_far, strict=True))

    divergence, error = repeat(count, tried, (nothing, nothing))
    least = xp.min(divergence, axis=0, keepdims=True)
    margin = xp.max(xp.where(divergence == least, error, nothing), axis=0, keepdims=True)
    # Besides noise, what logarithms of different libraries may differ by.
    alike = divergence <= least * (1.0 + 1e-5) + margin * _ERRORS
    first = xp.min(xp.where(alike, number, xp.zeros_like(number) + count), axis=0)
    return limits(xp.reshape(xp.take(table, first, axis=0), center.shape))


def _divergence(counts: Array, levels: int) -> tuple[Array, Array]:
    """Return KL(P || Q) of every box and its standard error, (1, boxes), of counts (bins + 1, boxes)."""
    xp = array_namespace(counts)
    inside, beyond, bins = counts[:-1, :], counts[-1:, :], counts.shape[0] - 1
    kept = tree_sum(inside, (0,))
    total = kept + beyond
    total = xp.where(total > 0.0, total, xp.ones_like(total))  # of nothing but zeros
    own = tree_sum(xp.reshape(inside, (levels, -1, counts.shape[1])), (1,))
    q = own * (levels / bins) / xp.where(kept > 0.0, kept, total)
    # Mass clipped into a level that was empty meets q = 0: a small number makes it dear, not infinite.
    q = xp.clip(q, 1e-9, None)
    p = xp.reshape(xp.concat([inside[:-1, :], inside[-1:, :] + beyond], axis=0) / total, (levels, -1, counts.shape[1]))
    ratio = xp.log(xp.where(p > 0.0, p, q) / q)
    mean, square = (tree_sum(terms, (0, 1)) for terms in (p * ratio, p * ratio * ratio))
    spread = xp.clip(square - mean * mean, 0.0, None) / total
    return xp.reshape(mean, total.shape), xp.reshape(xp.sqrt(spread), total.shape)
