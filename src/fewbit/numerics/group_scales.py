"""Scales of least squared error for groups that lie side by side, and their units: x' = scale * unit, no minimum.

min over scales of sum w (x - scale * unit)^2: from many starts, units and scale by least squares in turn.
A grid is (low, high, table): units are whole numbers from low to high, or those of a table. # lanes: (size, LANES)
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from fewbit.numerics.float16 import half
from fewbit.numerics.lanes import FAST, LANES, side_by_side

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
#: A group with no greater magnitude is one of zeros: its scale is 0.
_LEAST = np.float32(1e-30)
#: Alternations between units and scale.
_ROUNDS = 4
#: Rows of a state: what is tried, its reciprocal, and sums of w r r, w r u and w u u, r being what the units u leave.
SCALE, INVERSE, ERROR, PRODUCT, SQUARE = 0, LANES, 2 * LANES, 3 * LANES, 4 * LANES
#: The least error and what led to it; the number of the largest magnitude. Rows from `FREE` on are for callers.
BEST, CHOSEN, LARGEST, FREE = 5 * LANES, 6 * LANES, 7 * LANES, 8 * LANES


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def unit_of(value: Any, low: Any, high: Any, table: Any) -> Any:
    """Return the nearest unit; a `table` lists those nearest to every half from -128 to 128."""
    if table is None:
        return min(max(np.rint(value), low), high)
    place = min(max(np.floor(value + value) + np.float32(256.0), _ZERO), np.float32(511.0))
    return table[np.int32(place)]


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _terms(value: Any, weight: Any, scale: Any, inverse: Any, grid: Any) -> Any:
    """Return w r r, w r u and w u u of a number; `weight` may be `None`."""
    low, high, table = grid
    unit = unit_of(value * inverse, low, high, table)
    left = value - scale * unit
    if weight is None:
        return left * left, left * unit, unit * unit
    counted = weight * unit
    return weight * left * left, counted * left, counted * unit


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _at(weights: Any, k: Any, lane: Any) -> Any:
    return None if weights is None else weights[k, lane]


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def trial(lanes: Any, weights: Any, grid: Any, state: Any) -> None:
    """Set the sums of `state` for its scales."""
    for lane in range(LANES):
        scale = state[SCALE + lane]
        state[INVERSE + lane] = _ONE / scale if scale != _ZERO else _ZERO
        state[ERROR + lane], state[PRODUCT + lane], state[SQUARE + lane] = _ZERO, _ZERO, _ZERO
    whole = lanes.shape[0] - lanes.shape[0] % 4
    for k in range(0, whole, 4):  # four at a time, for sums to be read and written less often
        for lane in range(LANES):
            own, over = state[SCALE + lane], state[INVERSE + lane]
            a, b, c = _terms(lanes[k, lane], _at(weights, k, lane), own, over, grid)
            d, e, f = _terms(lanes[k + 1, lane], _at(weights, k + 1, lane), own, over, grid)
            g, h, i = _terms(lanes[k + 2, lane], _at(weights, k + 2, lane), own, over, grid)
            j, m, n = _terms(lanes[k + 3, lane], _at(weights, k + 3, lane), own, over, grid)
            state[ERROR + lane] += (a + d) + (g + j)
            state[PRODUCT + lane] += (b + e) + (h + m)
            state[SQUARE + lane] += (c + f) + (i + n)
    for k in range(whole, lanes.shape[0]):
        for lane in range(LANES):
            own, over = state[SCALE + lane], state[INVERSE + lane]
            a, b, c = _terms(lanes[k, lane], _at(weights, k, lane), own, over, grid)
            state[ERROR + lane] += a
            state[PRODUCT + lane] += b
            state[SQUARE + lane] += c


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _set_largest(lanes: Any, state: Any) -> None:
    for lane in range(LANES):
        state[LARGEST + lane] = _ZERO
    for k in range(lanes.shape[0]):
        for lane in range(LANES):
            value, largest = lanes[k, lane], state[LARGEST + lane]
            state[LARGEST + lane] = value if abs(value) > abs(largest) else largest


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _set_scales(step: Any, starts: Any, state: Any) -> None:
    """Set what a step tries: the largest number mapped to one of `starts`, then the best so far."""
    if step >= starts.shape[0]:
        for lane in range(LANES):
            state[SCALE + lane] = state[CHOSEN + lane]
        return
    start = starts[step]
    for lane in range(LANES):
        state[SCALE + lane] = state[LARGEST + lane] / start


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def change(product: Any, square: Any) -> Any:
    """Return by how much a scale should change for its units."""
    return product / square if square > _ZERO else _ZERO


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _keep_refitted(state: Any) -> Any:
    """Keep the scale that fits the units, where the error is then the least so far; return how often."""
    kept: Any = 0
    for lane in range(LANES):
        moved = change(state[PRODUCT + lane], state[SQUARE + lane])
        error = state[ERROR + lane] - moved * state[PRODUCT + lane]
        better = error < state[BEST + lane]
        state[BEST + lane] = error if better else state[BEST + lane]
        state[CHOSEN + lane] = state[SCALE + lane] + moved if better else state[CHOSEN + lane]
        kept += np.int32(better)
    return kept


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def fit(lanes: Any, weights: Any, starts: Any, grid: Any, state: Any) -> None:
    """Choose the scales of least error; `starts` are what the largest number of a group is mapped to."""
    _set_largest(lanes, state)
    for lane in range(LANES):
        state[BEST + lane], state[CHOSEN + lane] = np.float32(np.inf), _ZERO
    for step in range(starts.shape[0] + _ROUNDS):
        _set_scales(step, starts, state)
        trial(lanes, weights, grid, state)
        if not _keep_refitted(state) and step >= starts.shape[0]:
            break
    for lane in range(LANES):
        state[CHOSEN + lane] = state[CHOSEN + lane] if abs(state[LARGEST + lane]) > _LEAST else _ZERO


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _choose_float16(lanes: Any, weights: Any, starts: Any, grid: Any, state: Any) -> None:
    """Choose the float16 scales of least error."""
    fit(lanes, weights, starts, grid, state)
    for lane in range(LANES):
        state[BEST + lane], state[SCALE + lane] = np.float32(np.inf), half(state[CHOSEN + lane])
    for _ in range(2):
        trial(lanes, weights, grid, state)
        for lane in range(LANES):
            better, scale = state[ERROR + lane] < state[BEST + lane], state[SCALE + lane]
            state[BEST + lane] = state[ERROR + lane] if better else state[BEST + lane]
            state[CHOSEN + lane] = scale if better else state[CHOSEN + lane]
            state[SCALE + lane] = half(scale + change(state[PRODUCT + lane], state[SQUARE + lane]))


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def write(first: Any, count: Any, groups: Any, grid: Any, state: Any, units: Any) -> None:
    """Set the `units` of `count` groups from `first` on under the scales of `state`."""
    low, high, table = grid
    for lane in range(count):
        scale = state[SCALE + lane]
        inverse = _ONE / scale if scale != _ZERO else _ZERO
        for k in range(groups.shape[1]):
            # By way of int32: vector units have no other conversion.
            units[first + lane, k] = np.int8(np.int32(unit_of(groups[first + lane, k] * inverse, low, high, table)))


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _search_from(first: Any, groups: Any, weights: Any, grid: Any, starts: Any, found: Any) -> None:
    """Set units and float16 scales of the groups from `first` on, as many as there are lanes."""
    units, scales = found
    state = np.empty(FREE, np.float32)
    _choose_float16(side_by_side(groups, first), side_by_side(weights, first), starts, grid, state)
    for lane in range(LANES):
        state[SCALE + lane] = state[CHOSEN + lane]
    count = min(LANES, groups.shape[0] - first)
    for lane in range(count):
        scales[first + lane] = state[SCALE + lane]
    write(first, count, groups, grid, state, units)


@numba.njit(parallel=True, fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def search_scales(groups: Any, weights: Any, grid: Any, starts: Any, found: Any) -> None:
    """Set int8 units (groups, size) and float16 scales (groups,), `found`.

    `weights`, (n, size) or `None`, are repeated for all `groups` (groups, size).
    """
    for block in numba.prange((groups.shape[0] + LANES - 1) // LANES):
        _search_from(block * LANES, groups, weights, grid, starts, found)
