"""The clipping threshold whose quantized histogram diverges least from the original (TensorRT calibration, GTC 2017).

P is the histogram of |x| cut at a threshold, with what lies beyond added to its last bin; Q is the cut histogram merged
into one bin a level and spread again over the bins that held anything. The threshold with the least KL(P || Q) wins.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from fewbit.errors import SchemeError
from fewbit.numerics.namespace import Array, array_namespace, device
from fewbit.ranges.grid import Grid
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
        counts = _histogram(xp.abs(boxes) / xp.where(amax > 0.0, amax, xp.ones_like(amax)), axes, self.bins)
        levels = max(len(grid.format.levels) // 2, 2)
        best_bins, best = xp.zeros_like(counts[:, :1]) + self.bins, _divergence(counts, self.bins, levels)
        for kept in range(self.bins - self.stride, levels, -self.stride):
            divergence = _divergence(counts, kept, levels)
            best_bins = xp.where(divergence < best, xp.zeros_like(best_bins) + kept, best_bins)
            best = xp.where(divergence < best, divergence, best)
        share = xp.reshape(best_bins, outer)
        shape = tuple(1 if axis in axes else size for axis, size in enumerate(boxes.shape))
        threshold = xp.reshape(share, shape) * (1.0 / self.bins) * amax
        if grid.symmetric:
            return -threshold, threshold
        return xp.where(-low > threshold, -threshold, low), xp.where(high > threshold, threshold, high)


def _histogram(shares: Array, axes: tuple[int, ...], bins: int) -> Array:
    """Return counts (boxes, bins) as float32 of values in [0, 1]; sorting whole keys stands in for bincount."""
    xp = array_namespace(shares)
    outer = [axis for axis in range(shares.ndim) if axis not in axes]
    rows = xp.reshape(xp.permute_dims(shares, (*outer, *axes)), (-1, prod(shares.shape[axis] for axis in axes)))
    number = xp.astype(xp.clip(xp.floor(rows * bins), 0.0, bins - 1.0), xp.int64)
    box = xp.reshape(xp.arange(rows.shape[0], dtype=xp.int64, device=device(shares)), (-1, 1))
    keys = xp.sort(xp.reshape(number + box * bins, (-1,)))
    edges = xp.arange(rows.shape[0] * bins + 1, dtype=xp.int64, device=device(shares))
    below = xp.searchsorted(keys, edges)
    return xp.astype(xp.reshape(below[1:] - below[:-1], (rows.shape[0], bins)), xp.float32)


def _divergence(counts: Array, kept: int, levels: int) -> Array:
    """Return KL(P || Q) of every row for a threshold after `kept` bins, shape (rows, 1)."""
    xp = array_namespace(counts)
    inside = counts[:, :kept]
    beyond = xp.sum(counts[:, kept:], axis=1, keepdims=True)
    p = xp.concat([inside[:, :-1], inside[:, -1:] + beyond], axis=1)
    # Level i covers the bins [i * kept / levels, (i + 1) * kept / levels); each bin belongs to one level.
    starts = [level * kept // levels for level in range(levels)] + [kept]
    running = xp.cumulative_sum(inside, axis=1, include_initial=True)
    filled = xp.cumulative_sum(xp.astype(inside > 0.0, xp.float32), axis=1, include_initial=True)
    at = xp.asarray(starts, dtype=xp.int64, device=device(counts))
    mass = _steps(xp.take(running, at, axis=1))
    occupied = _steps(xp.take(filled, at, axis=1))
    mean = mass / xp.where(occupied > 0.0, occupied, xp.ones_like(occupied))
    owner = [level for level in range(levels) for _ in range(starts[level + 1] - starts[level])]
    spread = xp.take(mean, xp.asarray(owner, dtype=xp.int64, device=device(counts)), axis=1)
    q = xp.where(inside > 0.0, spread, xp.zeros_like(spread))
    total = xp.sum(p, axis=1, keepdims=True)
    p = p / total
    q = q / xp.where(xp.sum(q, axis=1, keepdims=True) > 0.0, xp.sum(q, axis=1, keepdims=True), total)
    # Mass clipped into a bin that was empty meets q = 0: the least float stands in, which makes it dear, not infinite.
    floor = xp.zeros_like(q) + 1e-9
    ratio = p / xp.where(q > floor, q, floor)
    terms = xp.where(p > 0.0, p * xp.log(xp.where(ratio > 0.0, ratio, xp.ones_like(ratio))), xp.zeros_like(p))
    return xp.sum(terms, axis=1, keepdims=True)


def _steps(values: Array) -> Array:
    return values[:, 1:] - values[:, :-1]
