"""Scales and minima of least squared error for groups that lie side by side: v' = scale * code + minimum.

min over both of sum w (v - scale * code - minimum)^2: from many starts, codes q and both by least squares in turn, then
both as float16. The minimum that fits takes the mean of q to the mean of v; x is v from there. # lanes: (size, LANES)
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
#: Alternations between codes and scale; one where errors count alike, as the others lower them by 0.5 %.
_ROUNDS, _FEW = 4, 1
#: Rows of a state: 1 / sum w; the mean; if nothing is cut off, what a code steps, and the code of the mean.
_SHARE, _CENTER, _STEP, _PLACE = (row * LANES for row in range(4))
#: What is tried, codes being x * inverse + offset; sums of w q, w q q and w x q; the scale that fits, its gain.
_INVERSE, _OFFSET, _UNITS, _SQUARE, _PRODUCT, _SCALE, _GAIN = (row * LANES for row in range(4, 11))
#: The greatest gain, by which the squared error is below that of the mean alone; its scale, and the mean of its codes;
#: the minimum that follows.
_BEST, _CHOSEN, _MEAN, _MINIMUM, _ROWS = (row * LANES for row in range(11, 16))


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _at(weights: Any, k: Any, lane: Any) -> Any:
    return None if weights is None else weights[k, lane]


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _counted(value: Any, weight: Any) -> Any:
    return value if weight is None else weight * value


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _set_shares(lanes: Any, weights: Any, state: Any) -> None:
    """Set 1 / sum w of each group."""
    for lane in range(LANES):
        state[_SHARE + lane] = np.float32(lanes.shape[0] if weights is None else 0)
    if weights is not None:
        for k in range(lanes.shape[0]):
            for lane in range(LANES):
                state[_SHARE + lane] += weights[k, lane]
    for lane in range(LANES):
        state[_SHARE + lane] = _ONE / state[_SHARE + lane]


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _begin(lanes: Any, weights: Any, most: Any, state: Any) -> None:
    """Count the numbers of each group from their mean, in steps that take the range to `most`; choose nothing."""
    for lane in range(LANES):
        state[_STEP + lane], state[_PLACE + lane] = lanes[0, lane], lanes[0, lane]
        state[_CENTER + lane] = _ZERO
    for k in range(lanes.shape[0]):
        for lane in range(LANES):
            value = lanes[k, lane]
            state[_STEP + lane] = max(state[_STEP + lane], value)
            state[_PLACE + lane] = min(state[_PLACE + lane], value)
            state[_CENTER + lane] += _counted(value, _at(weights, k, lane))
    _set_shares(lanes, weights, state)
    for lane in range(LANES):
        least, center = state[_PLACE + lane], state[_CENTER + lane] * state[_SHARE + lane]
        reach = state[_STEP + lane] - least
        inverse = most / reach if reach > _LEAST else _ZERO
        state[_CENTER + lane], state[_STEP + lane], state[_INVERSE + lane] = center, reach / most, inverse
        state[_PLACE + lane] = (center - least) * inverse
        state[_BEST + lane], state[_CHOSEN + lane], state[_MEAN + lane] = _ZERO, _ZERO, _ZERO
    for k in range(lanes.shape[0]):
        for lane in range(LANES):
            lanes[k, lane] = (lanes[k, lane] - state[_CENTER + lane]) * state[_INVERSE + lane]


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _terms(x: Any, weight: Any, inverse: Any, offset: Any, most: Any) -> Any:
    """Return w q, w q q and w x q of a number."""
    code = min(max(np.rint(x * inverse + offset), _ZERO), most)
    counted = _counted(code, weight)
    return counted, counted * code, counted * x


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _trial(lanes: Any, weights: Any, most: Any, state: Any) -> None:
    """Set the sums of `state` for what it tries."""
    for lane in range(LANES):
        state[_UNITS + lane], state[_SQUARE + lane], state[_PRODUCT + lane] = _ZERO, _ZERO, _ZERO
    whole = lanes.shape[0] - lanes.shape[0] % 4
    for k in range(0, whole, 4):  # four at a time, for sums to be read and written less often
        for lane in range(LANES):
            over, offset = state[_INVERSE + lane], state[_OFFSET + lane]
            a = _terms(lanes[k, lane], _at(weights, k, lane), over, offset, most)
            b = _terms(lanes[k + 1, lane], _at(weights, k + 1, lane), over, offset, most)
            c = _terms(lanes[k + 2, lane], _at(weights, k + 2, lane), over, offset, most)
            d = _terms(lanes[k + 3, lane], _at(weights, k + 3, lane), over, offset, most)
            state[_UNITS + lane] += (a[0] + b[0]) + (c[0] + d[0])
            state[_SQUARE + lane] += (a[1] + b[1]) + (c[1] + d[1])
            state[_PRODUCT + lane] += (a[2] + b[2]) + (c[2] + d[2])
    for k in range(whole, lanes.shape[0]):
        for lane in range(LANES):
            over, offset = state[_INVERSE + lane], state[_OFFSET + lane]
            a = _terms(lanes[k, lane], _at(weights, k, lane), over, offset, most)
            state[_UNITS + lane] += a[0]
            state[_SQUARE + lane] += a[1]
            state[_PRODUCT + lane] += a[2]


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _keep_fitted(state: Any) -> Any:
    """Keep what fits the codes, where the gain is then the greatest so far; return how often."""
    for lane in range(LANES):
        units, square, product = state[_UNITS + lane], state[_SQUARE + lane], state[_PRODUCT + lane]
        spread = square - units * units * state[_SHARE + lane]
        alike = spread <= np.float32(1e-6) * square  # codes that are all alike fit every scale
        scale = state[_SCALE + lane] if alike else product / (_ONE if alike else spread)
        state[_SCALE + lane], state[_GAIN + lane] = scale, scale * (product + product - scale * spread)
        state[_UNITS + lane] = units * state[_SHARE + lane]
    kept: Any = 0
    for lane in range(LANES):  # a loop of its own, as compilers compare few rows
        scale, gain, mean = state[_SCALE + lane], state[_GAIN + lane], state[_UNITS + lane]
        best, chosen, own = state[_BEST + lane], state[_CHOSEN + lane], state[_MEAN + lane]
        better = (gain > best) & (scale > _ZERO)
        state[_BEST + lane] = gain if better else best
        state[_CHOSEN + lane] = scale if better else chosen
        state[_MEAN + lane] = mean if better else own
        kept += np.int32(better)
    return kept


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _set_tried(step: Any, starts: Any, most: Any, state: Any) -> None:
    """Set what a step tries: shares of the range cut off, then the best so far."""
    if step >= starts.shape[0]:
        for lane in range(LANES):
            scale = state[_CHOSEN + lane]
            state[_INVERSE + lane], state[_SCALE + lane] = _ONE / scale if scale > _ZERO else _ZERO, scale
            state[_OFFSET + lane] = state[_MEAN + lane]
        return
    scale, below = _ONE - starts[step, 0] - starts[step, 1], starts[step, 0] * most
    inverse = _ONE / scale
    for lane in range(LANES):
        state[_INVERSE + lane], state[_SCALE + lane] = inverse, scale
        state[_OFFSET + lane] = (state[_PLACE + lane] - below) * inverse


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _search(lanes: Any, weights: Any, starts: Any, most: Any, state: Any) -> None:
    """Choose scales and means of least error; `starts` are shares of the range to be cut off."""
    _begin(lanes, weights, most, state)
    for step in range(starts.shape[0] + (_FEW if weights is None else _ROUNDS)):
        _set_tried(step, starts, most, state)
        _trial(lanes, weights, most, state)
        if not _keep_fitted(state) and step >= starts.shape[0]:
            break


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _search_from(first: Any, groups: Any, weights: Any, most: Any, starts: Any, found: Any) -> None:
    """Set codes, scales and minima of the groups from `first` on, as many as there are lanes."""
    codes, scales, minima = found
    state = np.empty(_ROWS, np.float32)
    _search(side_by_side(groups, first), side_by_side(weights, first), starts, most, state)
    for lane in range(LANES):
        scale = half(state[_CHOSEN + lane] * state[_STEP + lane])
        # The minimum makes up for the rounding of the scale.
        state[_SCALE + lane], state[_MINIMUM + lane] = scale, half(state[_CENTER + lane] - scale * state[_MEAN + lane])
        state[_INVERSE + lane] = _ONE / scale if scale != _ZERO else _ZERO
    for lane in range(min(LANES, groups.shape[0] - first)):
        minimum, inverse = state[_MINIMUM + lane], state[_INVERSE + lane]
        scales[first + lane], minima[first + lane] = state[_SCALE + lane], minimum
        for k in range(groups.shape[1]):
            code = min(max(np.rint((groups[first + lane, k] - minimum) * inverse), _ZERO), most)
            codes[first + lane, k] = np.uint8(np.int32(code))  # vector units have no other conversion


@numba.njit(parallel=True, fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def search_scales(groups: Any, weights: Any, most: Any, starts: Any, found: Any) -> None:
    """Set uint8 codes (groups, size), float16 scales and minima (groups,), `found`; `most` is the highest code.

    `weights`, (n, size) or `None`, are repeated for all `groups` (groups, size).
    """
    for block in numba.prange((groups.shape[0] + LANES - 1) // LANES):
        _search_from(block * LANES, groups, weights, most, starts, found)
