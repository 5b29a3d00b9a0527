"""The clipping threshold whose quantized histogram diverges least from the original (TensorRT calibration, GTC 2017).

P is the histogram of |x| cut at a threshold, with what lies beyond added to its last bin; Q is the cut histogram merged
into one bin a level and spread again over the bins that held anything. The threshold with the least KL(P || Q) wins.
The spike of zeros behind a ReLU has no say: every grid has 0 among its levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from fewbit.errors import SchemeError
from fewbit.numerics.loop import repeat, whole
from fewbit.numerics.namespace import Array, array_namespace, device
from fewbit.numerics.summation import tree_sum
from fewbit.ranges.bins import even
from fewbit.ranges.grid import Grid, pieces
from fewbit.ranges.minmax import MinMax


@dataclass(frozen=True, slots=True)
class Entropy:
    """Search the threshold of each box on a histogram of magnitudes."""

    #: Bins of the histogram.
    bins: int = 2048
    #: Bins between two thresholds that are tried.
    stride: int = 16

    def __post_init__(self) -> None:
        if not (self.bins >= 256 and 1 <= self.stride <= self.bins):
            raise SchemeError(f"entropy needs at least 256 bins and a stride within them, not {self}")

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
        outer = tuple(size for axis, size in enumerate(boxes.shape) if axis not in axes)
        whole = xp.where(amax > 0.0, amax, xp.ones_like(amax))
        parts = [_histogram(xp.abs(part) / whole, axes, self.bins) for part, _ in pieces(boxes, axes, None)]
        counts = sum(parts[1:], start=parts[0])
        share = xp.reshape(_best(counts, self.stride, _levels(grid)), outer)
        shape = tuple(1 if axis in axes else size for axis, size in enumerate(boxes.shape))
        threshold = xp.reshape(share, shape) * (1.0 / self.bins) * amax
        if grid.symmetric:
            return -threshold, threshold
        return xp.where(-low > threshold, -threshold, low), xp.where(high > threshold, threshold, high)

    @property
    def statistic(self) -> str:
        """What it wants to know of a static input."""
        return "histogram"

    def calibrated(self, seen: Any, grid: Grid) -> tuple[Array, Array]:
        """Return the best threshold, within the extremes; bins as fine as `bins` below twice the threshold."""
        one_sided = not grid.symmetric and (seen.low >= 0.0 or seen.high <= 0.0)  # as behind a ReLU
        levels = len(grid.format.levels) if one_sided else _levels(grid)
        limit = threshold = max(-seen.low, seen.high)
        while threshold > 0.0:
            kept = float(_best(even(seen, limit, self.bins)[None, :], self.stride, levels)[0, 0])
            threshold = limit * kept / self.bins
            # Far below the limit bins are too coarse to tell thresholds apart: look again at what lies there.
            if kept > self.bins / 2:
                break
            limit /= 2.0
        end = np.float32(threshold)
        if grid.symmetric:
            return -end, end
        return np.maximum(-end, np.float32(min(seen.low, 0.0))), np.minimum(end, np.float32(max(seen.high, 0.0)))


def _levels(grid: Grid) -> int:
    """Return how many levels magnitudes have."""
    return max(len(grid.format.levels) // 2, 2)


def _best(counts: Array, stride: int, levels: int) -> Array:
    """Return after how many bins each row is best cut, (rows, 1)."""
    xp = array_namespace(counts)
    bins = counts.shape[1]
    # What lies at 0 costs nothing at any threshold; left in, a spike would draw the threshold to where it is alone.
    counts = xp.concat([xp.minimum(counts[:, :1], counts[:, 1:2]), counts[:, 1:]], axis=1)
    start = (xp.zeros_like(counts[:, :1]) + bins, _divergence(counts, bins, levels))

    def narrower(index: Any, best: tuple[Array, ...]) -> tuple[Array, ...]:
        kept = bins - stride * (index + 1)
        divergence = _divergence(counts, kept, levels)
        better = divergence < best[1]
        return xp.where(better, xp.zeros_like(best[0]) + kept, best[0]), xp.where(better, divergence, best[1])

    return repeat(len(range(bins - stride, levels, -stride)), narrower, start)[0]


def _histogram(shares: Array, axes: tuple[int, ...], bins: int) -> Array:
    """Return counts (boxes, bins) as float32 of values in [0, 1]; sorting whole keys stands in for bincount."""
    xp = array_namespace(shares)
    outer = [axis for axis in range(shares.ndim) if axis not in axes]
    rows = xp.reshape(xp.permute_dims(shares, (*outer, *axes)), (-1, prod([shares.shape[axis] for axis in axes])))
    number = xp.astype(xp.clip(xp.floor(rows * bins), 0.0, bins - 1.0), xp.int32)
    if rows.shape[0] * bins >= 1 << 31:
        raise SchemeError(f"entropy over {rows.shape[0]} boxes at once needs too large a histogram; use mse")
    box = xp.reshape(_range(rows.shape[0], shares), (-1, 1))
    keys = xp.sort(xp.reshape(number + box * bins, (-1,)), stable=False)
    below = xp.searchsorted(keys, _range(rows.shape[0] * bins + 1, shares))
    return xp.astype(xp.reshape(below[1:] - below[:-1], (rows.shape[0], bins)), xp.float32)


def _divergence(counts: Array, kept: Any, levels: int) -> Array:
    """Return KL(P || Q) of every row for a threshold after `kept` bins, shape (rows, 1)."""
    xp = array_namespace(counts)
    number = _range(counts.shape[1], counts)
    inside = xp.where(number < kept, counts, xp.zeros_like(counts))
    total = tree_sum(counts, (1,))
    beyond = total - tree_sum(inside, (1,))
    total = xp.where(total > 0.0, total, xp.ones_like(total))  # of nothing but zeros
    p = (inside + xp.where(number == kept - 1, beyond, xp.zeros_like(beyond))) / total
    # Level i covers the bins [i * kept / levels, (i + 1) * kept / levels); each bin belongs to one level.
    starts = _range(levels + 1, counts) * kept // levels
    mass = _between(inside, starts)
    occupied = _between(xp.astype(inside > 0.0, xp.float32), starts)
    mean = mass / xp.where(occupied > 0.0, occupied, xp.ones_like(occupied))
    owner = xp.clip(xp.astype(xp.searchsorted(starts, number, side="right"), xp.int32) - 1, 0, levels - 1)
    q = xp.where(inside > 0.0, xp.take(mean, owner, axis=1), xp.zeros_like(inside))
    whole = tree_sum(q, (1,))
    q = q / xp.where(whole > 0.0, whole, total)
    # Mass clipped into a bin that was empty meets q = 0: the least float stands in, which makes it dear, not infinite.
    floor = xp.zeros_like(q) + 1e-9
    ratio = p / xp.where(q > floor, q, floor)
    terms = xp.where(p > 0.0, p * xp.log(xp.where(ratio > 0.0, ratio, xp.ones_like(ratio))), xp.zeros_like(p))
    return tree_sum(terms, (1,))


def _between(values: Array, starts: Array) -> Array:
    """Return the sums of whole numbers `values` (rows, bins) from each of `starts` to the next."""
    xp = array_namespace(values)
    running = xp.take(xp.cumulative_sum(values, axis=1, include_initial=True), starts, axis=1)
    return running[:, 1:] - running[:, :-1]


def _range(count: int, like: Array) -> Array:
    xp = array_namespace(like)
    return xp.arange(count, dtype=xp.int32, device=device(like))
