"""A histogram as range methods search on it: as weighted values, or as even bins of magnitudes up to a limit."""

from __future__ import annotations

from typing import Any

import numpy as np

from fewbit.numerics.namespace import Array
from fewbit.ranges import RangeMethod
from fewbit.ranges.grid import Grid


def searched(method: RangeMethod, seen: Any, grid: Grid) -> tuple[Array, Array]:
    """Return the bounds that a method which searches finds for what was seen, each value as often as it was seen."""
    middles, counts = seen.result()
    low, high = method(middles[None, :], (1,), grid, counts.astype(np.float32)[None, :])
    return low.reshape(()), high.reshape(())


def quantile(seen: Any, share: float, *, magnitudes: bool) -> np.ndarray[Any, Any]:
    """Return the value, or magnitude, that `share` of what was seen lies below."""
    middles, counts = seen.result()
    if magnitudes:
        order = np.argsort(np.abs(middles), kind="stable")
        middles, counts = np.abs(middles)[order], counts[order]
    below = np.cumsum(counts, dtype=np.float64) - counts / 2.0
    return np.asarray(np.interp(share * counts.sum(), below, middles), dtype=np.float32)


def even(seen: Any, limit: float, bins: int) -> np.ndarray[Any, Any]:
    """Return the counts of magnitudes in `bins` even bins up to `limit`, float32; what lies beyond is in the last."""
    middles, counts = seen.result()
    place = np.minimum(np.abs(middles).astype(np.float64) * (bins / limit), bins - 1).astype(np.int64)
    return np.bincount(place, weights=counts, minlength=bins).astype(np.float32)
