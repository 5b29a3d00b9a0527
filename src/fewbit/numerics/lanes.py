"""Groups of numbers side by side, a group a lane: each step of a search then works on all lanes by vector units.

lanes[k, lane] = groups[first + lane, k]; what a search knows of a lane stands in a `state` (n * LANES,), row after row.
Sums over a group are sums over k, so no vector is ever summed up; distances within a state are known when compiling.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

#: Groups that are worked on side by side: with 32 numbers each they and their weights fit the nearest cache.
LANES = 128
#: Freedoms that let sums use vector units; NaN and infinity do not occur, order of sums may change.
FAST = {"reassoc", "contract", "arcp", "nsz", "nnan", "ninf"}


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def put_side_by_side(groups: Any, first: Any, lanes: Any) -> None:
    """Fill `lanes` (size, LANES) with `groups` (n, size) from `first` on, and from the beginning behind the last."""
    n = groups.shape[0]
    for lane in range(0, LANES, 4):  # four at a time fill what one access to memory moves
        a, b, c, d = (first + lane) % n, (first + lane + 1) % n, (first + lane + 2) % n, (first + lane + 3) % n
        for k in range(lanes.shape[0]):
            lanes[k, lane], lanes[k, lane + 1] = groups[a, k], groups[b, k]
            lanes[k, lane + 2], lanes[k, lane + 3] = groups[c, k], groups[d, k]


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def side_by_side(groups: Any, first: Any) -> Any:
    """Return these lanes; `None` where there are no groups."""
    if groups is None:
        return None
    lanes = np.empty((groups.shape[1], LANES), np.float32)
    put_side_by_side(groups, first, lanes)
    return lanes
