"""Scales of the groups of a span, found together with what they are stored in: x' = scale * level, no minimum.

min over scales of sum w (x - scale * level)^2 with scale = unit * code: groups by themselves, then descent over
neighbouring codes and least squares of the unit. Groups of several spans lie side by side. # lanes: (size, LANES)
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from fewbit.numerics.float16 import half
from fewbit.numerics.group_scales import BEST, CHOSEN, ERROR, FREE, PRODUCT, SCALE, SQUARE, change, fit, trial, write
from fewbit.numerics.lanes import FAST, LANES, side_by_side

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
#: Further rows of a state: codes that are tried, the best codes, units that are tried, the best units, and the errors
#: of spans under these; what concerns a span stands in the lane of its first group, units in all of its lanes.
_TRIAL, _CODE, _TRIAL_UNIT, _UNIT, _TOTAL, _ROWS = (FREE + row * LANES for row in range(6))


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _sum(state: Any, row: Any, each: Any) -> Any:
    """Return the sum of `each` numbers from place `row` on."""
    total = _ZERO
    for place in range(row, row + each):
        total += state[place]
    return total


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _largest(state: Any, row: Any, each: Any) -> Any:
    """Return the number of the largest magnitude."""
    largest = _ZERO
    for place in range(row, row + each):
        largest = state[place] if abs(state[place]) > abs(largest) else largest
    return largest


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _set_codes(top: Any, each: Any, limits: Any, state: Any) -> None:
    """Try the units under which the largest scale of a span has the code `top`, and the codes nearest to the scales."""
    for first in range(0, LANES // each * each, each):
        unit = half(_largest(state, CHOSEN + first, each) / top)
        inverse = _ONE / unit if unit != _ZERO else _ZERO
        for lane in range(first, first + each):
            code = min(max(np.rint(state[CHOSEN + lane] * inverse), limits[0]), limits[1])
            state[_TRIAL + lane], state[_TRIAL_UNIT + lane], state[SCALE + lane] = code, unit, unit * code


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _start(lanes: Any, weights: Any, grids: Any, each: Any, state: Any) -> None:
    """Choose units and codes near the scales that are chosen."""
    grid, limits, tops = grids
    for lane in range(LANES):
        state[_TOTAL + lane], state[_CODE + lane], state[_UNIT + lane] = np.float32(np.inf), _ZERO, _ZERO
        state[SCALE + lane] = _ZERO
    for top in tops:
        _set_codes(top, each, limits, state)
        trial(lanes, weights, grid, state)
        for first in range(0, LANES // each * each, each):
            error = _sum(state, ERROR + first, each)
            if error < state[_TOTAL + first]:
                state[_TOTAL + first] = error
                for lane in range(first, first + each):
                    state[_CODE + lane], state[_UNIT + lane] = state[_TRIAL + lane], state[_TRIAL_UNIT + lane]


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _try(direction: Any, limits: Any, state: Any) -> None:
    for lane in range(LANES):
        code = min(max(state[_CODE + lane] + direction, limits[0]), limits[1])
        state[_TRIAL + lane], state[SCALE + lane] = code, state[_UNIT + lane] * code


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _keep(state: Any) -> Any:
    """Keep the codes that are tried where the error is less; return how often."""
    kept: Any = 0
    for lane in range(LANES):
        better = state[ERROR + lane] < state[BEST + lane]
        state[BEST + lane] = state[ERROR + lane] if better else state[BEST + lane]
        state[_CODE + lane] = state[_TRIAL + lane] if better else state[_CODE + lane]
        kept += np.int32(better)
    return kept


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _refit(each: Any, state: Any) -> None:
    """Remember the errors of spans, and try the float16 units that fit the units of the weights."""
    for first in range(0, LANES // each * each, each):
        product, square = _ZERO, _ZERO
        for lane in range(first, first + each):
            code = state[_CODE + lane]
            product += code * state[PRODUCT + lane]
            square += code * code * state[SQUARE + lane]
        state[_TOTAL + first] = _sum(state, ERROR + first, each)
        unit = half(state[_UNIT + first] + change(product, square))
        for lane in range(first, first + each):
            state[_TRIAL_UNIT + lane], state[SCALE + lane] = unit, unit * state[_CODE + lane]


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _keep_units(each: Any, state: Any) -> Any:
    """Keep the units that are tried where the error of the span is less; return how often."""
    kept: Any = 0
    for first in range(0, LANES // each * each, each):
        unit = state[_TRIAL_UNIT + first]
        if unit != _ZERO and _sum(state, ERROR + first, each) < state[_TOTAL + first]:
            kept += 1
            for lane in range(first, first + each):
                state[_UNIT + lane] = unit
    return kept


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _settle(lanes: Any, weights: Any, grids: Any, each: Any, state: Any) -> Any:
    """Move each code to neighbours while that lowers the error of its group, then the units; return whether any is."""
    grid, limits, _ = grids
    for lane in range(LANES):
        state[BEST + lane] = np.float32(np.inf)
    step = 0  # the codes as they are, lower, higher, as they are; then units that fit them
    while True:
        if step < 4:
            _try(np.float32(2 * step - 3 if step in (1, 2) else 0), limits, state)
        trial(lanes, weights, grid, state)
        if step == 4:
            return _keep_units(each, state) > 0
        moved = _keep(state) if step < 3 else 0
        if step == 3:
            _refit(each, state)
        if step == 0 or not moved:
            step += 1


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _search_from(first: Any, groups: Any, weights: Any, limits: Any, starts: Any, found: Any) -> None:
    """Set what `search_spans` sets for the groups from `first` on, as many as there are lanes."""
    units, codes, scales = found
    low, high, table, least, most, tops, sweeps = limits
    grids, each = ((low, high, table), (least, most), tops), codes.shape[0] // scales.shape[0]
    state = np.empty(_ROWS, np.float32)
    lanes, counted = side_by_side(groups, first), side_by_side(weights, first)
    fit(lanes, counted, starts, grids[0], state)
    _start(lanes, counted, grids, each, state)
    for _ in range(sweeps):
        if not _settle(lanes, counted, grids, each, state):
            break
    for lane in range(LANES):
        state[SCALE + lane] = state[_UNIT + lane] * state[_CODE + lane]
    count = min(LANES // each * each, groups.shape[0] - first)
    for lane in range(count):
        codes[first + lane], scales[(first + lane) // each] = state[_CODE + lane], state[_UNIT + lane]
    write(first, count, groups, grids[0], state, units)


@numba.njit(parallel=True, fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def search_spans(groups: Any, weights: Any, limits: Any, starts: Any, found: Any) -> None:
    """Set int8 units (groups, size), float32 codes of scales (groups,) and their float16 units (spans,), `found`.

    `weights`, (n, size) or `None`, are repeated for all `groups` (groups, size). `limits`: lowest and highest unit,
    their table, lowest and highest code of scales, what that of the largest may be, and how many sweeps.
    """
    step = LANES // (found[1].shape[0] // found[2].shape[0]) * (found[1].shape[0] // found[2].shape[0])
    for block in numba.prange((groups.shape[0] + step - 1) // step):
        _search_from(block * step, groups, weights, limits, starts, found)
