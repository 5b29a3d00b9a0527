"""Scales and minima of least squared error for groups that lie side by side: x' = scale * code + minimum.

min over both of sum w (x - scale * code - minimum)^2: from many starts, codes and both by least squares in turn; then
both as float16. # lanes: (size, LANES)
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from fewbit.numerics.float16 import half
from fewbit.numerics.lanes import FAST, LANES, side_by_side

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
#: A group of no greater range is constant: its scale is 0.
_LEAST = np.float32(1e-30)
#: Alternations between codes and both parameters, and between these and their float16.
_ROUNDS, _ROUNDINGS = 4, 3
#: Both where errors count alike, as llama.cpp's own types search nothing there: the others lower the error by 0.5 %.
_FEW = 1
#: Rows of a state: what is tried, the reciprocal of the scale, and sums of w r r, w r, w r q, w q and w q q, r being
#: what the codes q leave.
_SCALE, _MINIMUM, _INVERSE, _ERROR, _LEFT = 0, LANES, 2 * LANES, 3 * LANES, 4 * LANES
_PRODUCT, _UNITS, _SQUARE = 5 * LANES, 6 * LANES, 7 * LANES
#: Sums of w; the least number and the range; the least error and what led to it; by how much scale and minimum should
#: change for the codes as they are, and the error that is left then.
_COUNT, _LOW, _REACH, _BEST, _CHOSEN, _CHOSEN_MINIMUM = (row * LANES for row in range(8, 14))
_SLOPE, _SHIFT, _FITTED, _ROWS = (row * LANES for row in range(14, 18))


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _terms(value: Any, weight: Any, scale: Any, inverse: Any, minimum: Any, most: Any) -> Any:
    """Return w r r, w r, w r q, w q and w q q of a number; `weight` may be `None`."""
    moved = value - minimum
    code = min(max(np.rint(moved * inverse), _ZERO), most)
    left = moved - scale * code
    if weight is None:
        return left * left, left, left * code, code, code * code
    counted, weighted = weight * left, weight * code
    return counted * left, counted, counted * code, weighted, weighted * code


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _at(weights: Any, k: Any, lane: Any) -> Any:
    return None if weights is None else weights[k, lane]


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _trial(lanes: Any, weights: Any, most: Any, state: Any) -> None:
    """Set the sums of `state` for its scales and minima."""
    for lane in range(LANES):
        scale = state[_SCALE + lane]
        state[_INVERSE + lane] = _ONE / scale if scale != _ZERO else _ZERO
        state[_ERROR + lane], state[_LEFT + lane], state[_PRODUCT + lane] = _ZERO, _ZERO, _ZERO
        state[_UNITS + lane], state[_SQUARE + lane] = _ZERO, _ZERO
    whole = lanes.shape[0] - lanes.shape[0] % 4
    for k in range(0, whole, 4):  # four at a time, for sums to be read and written less often
        for lane in range(LANES):
            own, over, low = state[_SCALE + lane], state[_INVERSE + lane], state[_MINIMUM + lane]
            a = _terms(lanes[k, lane], _at(weights, k, lane), own, over, low, most)
            b = _terms(lanes[k + 1, lane], _at(weights, k + 1, lane), own, over, low, most)
            c = _terms(lanes[k + 2, lane], _at(weights, k + 2, lane), own, over, low, most)
            d = _terms(lanes[k + 3, lane], _at(weights, k + 3, lane), own, over, low, most)
            state[_ERROR + lane] += (a[0] + b[0]) + (c[0] + d[0])
            state[_LEFT + lane] += (a[1] + b[1]) + (c[1] + d[1])
            state[_PRODUCT + lane] += (a[2] + b[2]) + (c[2] + d[2])
            state[_UNITS + lane] += (a[3] + b[3]) + (c[3] + d[3])
            state[_SQUARE + lane] += (a[4] + b[4]) + (c[4] + d[4])
    for k in range(whole, lanes.shape[0]):
        for lane in range(LANES):
            own, over, low = state[_SCALE + lane], state[_INVERSE + lane], state[_MINIMUM + lane]
            a = _terms(lanes[k, lane], _at(weights, k, lane), own, over, low, most)
            state[_ERROR + lane] += a[0]
            state[_LEFT + lane] += a[1]
            state[_PRODUCT + lane] += a[2]
            state[_UNITS + lane] += a[3]
            state[_SQUARE + lane] += a[4]


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _set_changes(state: Any) -> None:
    for lane in range(LANES):
        count, left, product = state[_COUNT + lane], state[_LEFT + lane], state[_PRODUCT + lane]
        units, square = state[_UNITS + lane], state[_SQUARE + lane]
        determinant = count * square - units * units
        spread = determinant > np.float32(1e-6) * count * square
        over = _ONE / (determinant if spread else count)
        slope = (count * product - units * left) * over if spread else _ZERO  # else codes are all alike
        shift = (square * left - units * product if spread else left) * over
        state[_SLOPE + lane], state[_SHIFT + lane] = slope, shift
        state[_FITTED + lane] = state[_ERROR + lane] - slope * product - shift * left


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _keep_refitted(state: Any) -> Any:
    """Keep what fits the codes, where the error is then the least so far; return how often."""
    _set_changes(state)  # a loop of its own, as compilers compare few rows
    kept: Any = 0
    for lane in range(LANES):
        scale, minimum = state[_SCALE + lane] + state[_SLOPE + lane], state[_MINIMUM + lane] + state[_SHIFT + lane]
        better = (state[_FITTED + lane] < state[_BEST + lane]) & (scale > _ZERO)
        state[_BEST + lane] = state[_FITTED + lane] if better else state[_BEST + lane]
        state[_CHOSEN + lane] = scale if better else state[_CHOSEN + lane]
        state[_CHOSEN_MINIMUM + lane] = minimum if better else state[_CHOSEN_MINIMUM + lane]
        kept += np.int32(better)
    return kept


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _begin(lanes: Any, weights: Any, state: Any) -> None:
    """Set the extremes of each group and what it counts; nothing is chosen yet."""
    for lane in range(LANES):
        state[_LOW + lane], state[_REACH + lane] = lanes[0, lane], lanes[0, lane]
        state[_COUNT + lane] = np.float32(lanes.shape[0] if weights is None else 0)
    for k in range(lanes.shape[0]):
        for lane in range(LANES):
            state[_LOW + lane] = min(state[_LOW + lane], lanes[k, lane])
            state[_REACH + lane] = max(state[_REACH + lane], lanes[k, lane])
    if weights is not None:
        for k in range(lanes.shape[0]):
            for lane in range(LANES):
                state[_COUNT + lane] += weights[k, lane]
    for lane in range(LANES):
        state[_REACH + lane] -= state[_LOW + lane]
        state[_BEST + lane], state[_CHOSEN + lane] = np.float32(np.inf), _ZERO
        state[_CHOSEN_MINIMUM + lane] = state[_LOW + lane]


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _set_parameters(step: Any, starts: Any, most: Any, state: Any) -> None:
    """Set what a step tries: shares of the range cut off, then the best so far."""
    if step >= starts.shape[0]:
        for lane in range(LANES):
            state[_SCALE + lane], state[_MINIMUM + lane] = state[_CHOSEN + lane], state[_CHOSEN_MINIMUM + lane]
        return
    below, part = starts[step, 0], (_ONE - starts[step, 0] - starts[step, 1]) / most
    for lane in range(LANES):
        reach = state[_REACH + lane]
        state[_SCALE + lane], state[_MINIMUM + lane] = reach * part, state[_LOW + lane] + below * reach


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _fit(lanes: Any, weights: Any, starts: Any, most: Any, state: Any) -> None:
    """Choose scales and minima of least error; `starts` are shares of the range to be cut off."""
    _begin(lanes, weights, state)
    for step in range(starts.shape[0] + (_FEW if weights is None else _ROUNDS)):
        _set_parameters(step, starts, most, state)
        _trial(lanes, weights, most, state)
        if not _keep_refitted(state) and step >= starts.shape[0]:
            break
    for lane in range(LANES):
        constant = state[_REACH + lane] <= _LEAST
        state[_CHOSEN + lane] = _ZERO if constant else state[_CHOSEN + lane]
        state[_CHOSEN_MINIMUM + lane] = state[_LOW + lane] if constant else state[_CHOSEN_MINIMUM + lane]


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _choose_float16(lanes: Any, weights: Any, starts: Any, most: Any, state: Any) -> None:
    """Choose the float16 scales and minima of least error."""
    _fit(lanes, weights, starts, most, state)
    for lane in range(LANES):
        state[_BEST + lane] = np.float32(np.inf)
        state[_SCALE + lane] = half(state[_CHOSEN + lane])
        state[_MINIMUM + lane] = half(state[_CHOSEN_MINIMUM + lane])
    for _ in range(_FEW if weights is None else _ROUNDINGS):
        _trial(lanes, weights, most, state)
        _keep(state)
        _set_changes(state)
        _round(state)


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _keep(state: Any) -> None:
    """Keep what is tried where the error is less."""
    for lane in range(LANES):
        better = state[_ERROR + lane] < state[_BEST + lane]
        state[_BEST + lane] = state[_ERROR + lane] if better else state[_BEST + lane]
        state[_CHOSEN + lane] = state[_SCALE + lane] if better else state[_CHOSEN + lane]
        state[_CHOSEN_MINIMUM + lane] = state[_MINIMUM + lane] if better else state[_CHOSEN_MINIMUM + lane]


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _round(state: Any) -> None:
    """Try the float16 next to what fits the codes; the minimum makes up for the rounding of the scale."""
    for lane in range(LANES):
        wanted = state[_SCALE + lane] + state[_SLOPE + lane]
        rounded = half(wanted)
        shift = state[_SHIFT + lane] + (wanted - rounded) * state[_UNITS + lane] / state[_COUNT + lane]
        state[_SCALE + lane], state[_MINIMUM + lane] = rounded, half(state[_MINIMUM + lane] + shift)


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _write(first: Any, groups: Any, most: Any, state: Any, codes: Any) -> None:
    """Set the `codes` of the groups from `first` on under what is chosen."""
    for lane in range(min(LANES, groups.shape[0] - first)):
        scale, minimum = state[_CHOSEN + lane], state[_CHOSEN_MINIMUM + lane]
        inverse = _ONE / scale if scale != _ZERO else _ZERO
        for k in range(groups.shape[1]):
            code = min(max(np.rint((groups[first + lane, k] - minimum) * inverse), _ZERO), most)
            codes[first + lane, k] = np.uint8(np.int32(code))  # vector units have no other conversion


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _search_from(first: Any, groups: Any, weights: Any, most: Any, starts: Any, found: Any) -> None:
    """Set codes, scales and minima of the groups from `first` on, as many as there are lanes."""
    codes, scales, minima = found
    state = np.empty(_ROWS, np.float32)
    _choose_float16(side_by_side(groups, first), side_by_side(weights, first), starts, most, state)
    for lane in range(min(LANES, groups.shape[0] - first)):
        scales[first + lane], minima[first + lane] = state[_CHOSEN + lane], state[_CHOSEN_MINIMUM + lane]
    _write(first, groups, most, state, codes)


@numba.njit(parallel=True, fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def search_scales(groups: Any, weights: Any, most: Any, starts: Any, found: Any) -> None:
    """Set uint8 codes (groups, size), float16 scales and minima (groups,), `found`; `most` is the highest code.

    `weights`, (n, size) or `None`, are repeated for all `groups` (groups, size).
    """
    for block in numba.prange((groups.shape[0] + LANES - 1) // LANES):
        _search_from(block * LANES, groups, weights, most, starts, found)
