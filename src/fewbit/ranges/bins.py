"""A histogram as range methods search on it: as weighted values, or as even bins of magnitudes up to a limit."""

from __future__ import annotations

from typing import Any

import numpy as np

from fewbit.numerics.namespace import Array
from fewbit.ranges import RangeMethod
from fewbit.ranges.grid import Grid
from fewbit.statistics.histogram import PER_BINADE


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


def spread(seen: Any, limit: float, bins: int) -> np.ndarray[Any, Any]:
    """Return the counts of magnitudes above 0 in `bins` even bins up to `limit`, and beyond, float64 (bins + 1,).

    The bins of the statistic are cut where they have to be; their numbers count as spread evenly over them.
    """
    middles, counts = seen.result()
    magnitudes, counts = np.abs(middles).astype(np.float64), counts.astype(np.float64)
    order = np.argsort(magnitudes, kind="stable")
    magnitudes, counts = magnitudes[order], np.where(magnitudes[order] > 0.0, counts[order], 0.0)
    half = np.exp2(np.floor(np.log2(np.where(magnitudes > 0.0, magnitudes, 1.0)))) / (2 * PER_BINADE)
    ends = np.minimum(np.stack([magnitudes - half, magnitudes + half], axis=1), max(-seen.low, seen.high))
    above = np.cumsum(counts)
    below = np.stack([above - counts, above], axis=1)
    edges = np.linspace(0.0, limit, bins + 1)
    reached = np.interp(edges, ends.reshape(-1), below.reshape(-1), left=0.0)
    return np.append(np.diff(reached), above[-1] - reached[-1])
