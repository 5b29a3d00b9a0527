"""The bins of a histogram between the extremes, for range methods that search on them as on weighted values."""

from __future__ import annotations

from typing import Any

import numpy as np


def occupied(seen: Any) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the middles of the bins from the first to the last that holds anything, and their counts, as float32."""
    middles, counts = seen.result()
    held = np.flatnonzero(counts)
    if not len(held):
        return np.zeros(1, np.float32), np.ones(1, np.float32)
    inside = slice(held[0], held[-1] + 1)
    return middles[inside], counts[inside].astype(np.float32)


def folded(seen: Any) -> tuple[np.ndarray[Any, Any], float]:
    """Return the counts of magnitudes up to the last bin that holds anything, as float32, and the width of a bin."""
    middles, counts = seen.result()
    side = len(counts) // 2
    both = counts[side:] + counts[:side][::-1]
    held = np.flatnonzero(both)
    last = held[-1] + 1 if len(held) else 1
    return both[:last].astype(np.float32), float(2.0 * middles[side])
