"""Groups of small floats under scales that are levels themselves, compiled: the bits of `ScaleLevels` and `Float`.

min over levels s of sum w (x - round(x / (s g)) s g)^2, in the order and with the roundings of `tree_sum` and `Float`:
no fast arithmetic here. `form`: the exponent of the least step, bits of a mantissa, largest magnitude. # (n, size)
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from fewbit.numerics.lanes import LANES, side_by_side

_ZERO, _ONE, _LEAST = np.float32(0.0), np.float32(1.0), np.float32(2.0**-126)
#: Rows of a state: the scale that is tried, its reciprocal, the least error.
_SCALE, _INVERSE, _BEST, _ROWS = 0, LANES, 2 * LANES, 3 * LANES


@numba.njit(fastmath=False, cache=True)  # type: ignore[untyped-decorator]
def _step(magnitude: Any, form: Any) -> Any:
    """Return the exponent of the distance of levels at `magnitude`."""
    exponent = np.int32(((np.float32(magnitude).view(np.int32) >> np.int32(23)) & np.int32(255)) - np.int32(127))
    return np.int32(max(np.int32(exponent - form[1]), form[0]))


@numba.njit(fastmath=False, cache=True)  # type: ignore[untyped-decorator]
def _power(exponent: Any) -> Any:
    return np.int32((exponent + np.int32(127)) << np.int32(23)).view(np.float32)


@numba.njit(fastmath=False, cache=True)  # type: ignore[untyped-decorator]
def _squared(value: Any, scale: Any, inverse: Any, form: Any) -> Any:
    """Return the squared error of a number."""
    scaled, most = value * inverse, form[2]
    scaled = most if scaled > most else scaled
    scaled = -most if scaled < -most else scaled
    step = _step(abs(scaled), form)
    left = np.rint(scaled * _power(-step)) * _power(step) * scale - value
    return left * left


@numba.njit(fastmath=False, cache=True)  # type: ignore[untyped-decorator]
def _flush(lanes: Any) -> None:
    """Make subnormals 0."""
    for k in range(lanes.shape[0]):
        for lane in range(LANES):
            lanes[k, lane] = lanes[k, lane] if abs(lanes[k, lane]) >= _LEAST else _ZERO


@numba.njit(fastmath=False, cache=True)  # type: ignore[untyped-decorator]
def _set_terms(lanes: Any, weights: Any, form: Any, state: Any, terms: Any) -> None:
    """Set what each number adds to the error under the scales of `state`."""
    for k in range(lanes.shape[0]):
        for lane in range(LANES):
            squared = _squared(lanes[k, lane], state[_SCALE + lane], state[_INVERSE + lane], form)
            terms[k, lane] = squared if weights is None else squared * weights[k, lane]


@numba.njit(fastmath=False, cache=True)  # type: ignore[untyped-decorator]
def _sum(terms: Any) -> None:
    """Add halves until the first row is the sum."""
    count = terms.shape[0]
    while count > 1:
        half = count // 2
        for k in range(half):
            for lane in range(LANES):
                terms[k, lane] += terms[half + k, lane]
        if count % 2:
            for lane in range(LANES):
                terms[half, lane] = terms[2 * half, lane]
        count = half + count % 2


@numba.njit(fastmath=False, cache=True)  # type: ignore[untyped-decorator]
def _search_from(first: Any, groups: Any, weights: Any, form: Any, scales: Any, found: Any) -> None:
    """Set what `search_levels` sets for the groups from `first` on, as many as there are lanes."""
    begun, last, unit, levels, steps = scales
    lanes, counted, state = side_by_side(groups, first), side_by_side(weights, first), np.empty(_ROWS, np.float32)
    terms, count = np.empty(lanes.shape, np.float32), min(LANES, groups.shape[0] - first)
    best = np.empty(LANES, np.int32)
    _flush(lanes)
    for lane in range(LANES):
        state[_SCALE + lane], best[lane] = begun[first + lane] if lane < count else _ONE, np.int32(-1)
    for step in range(-1, steps):
        if step >= 0:
            for lane in range(count):
                place = min(max(last[first + lane] - step, 0), levels.shape[0] - 1)
                state[_SCALE + lane] = levels[place] * unit[first + lane]
        for lane in range(LANES):
            state[_INVERSE + lane] = _ONE / state[_SCALE + lane]
        _set_terms(lanes, counted, form, state, terms)
        _sum(terms)
        for lane in range(LANES):
            better = (terms[0, lane] < state[_BEST + lane]) | (step < 0)
            state[_BEST + lane] = terms[0, lane] if better else state[_BEST + lane]
            best[lane] = np.int32(step) if better else best[lane]
    for lane in range(count):
        place = min(max(last[first + lane] - best[lane], 0), levels.shape[0] - 1)
        found[first + lane] = -1 if best[lane] < 0 else place


@numba.njit(parallel=True, fastmath=False, cache=True)  # type: ignore[untyped-decorator]
def search_levels(groups: Any, weights: Any, form: Any, scales: Any, found: Any) -> None:
    """Set `found` (groups,) to the places of the levels of least error, -1 where none is better than where it began.

    `scales`: those to begin with (groups,), the places of the highest levels to try (groups,), what levels are counted
    in (groups,), the levels, and how many are tried. `weights` (m, size) or `None` are repeated for all groups.
    """
    for block in numba.prange((groups.shape[0] + LANES - 1) // LANES):
        _search_from(block * LANES, groups, weights, form, scales, found)


@numba.njit(parallel=True, fastmath=False, cache=True)  # type: ignore[untyped-decorator]
def encode_groups(groups: Any, scales: Any, form: Any, sign: Any, codes: Any) -> None:
    """Set uint8 `codes` of `groups` under `scales` (groups,); `sign` is the bit of negative numbers."""
    for group in numba.prange(groups.shape[0]):
        inverse = _ONE / scales[group]
        for k in range(groups.shape[1]):
            value = groups[group, k]
            scaled = (value if abs(value) >= _LEAST else _ZERO) * inverse
            magnitude = abs(scaled)
            magnitude = form[2] if magnitude > form[2] else magnitude
            step = _step(magnitude, form)
            units = np.int32(np.rint(magnitude * _power(-step)))
            code = ((step - form[0]) << form[1]) + units
            codes[group, k] = np.uint8(np.int32(code + sign if scaled <= -_LEAST else code))
