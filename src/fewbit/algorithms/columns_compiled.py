"""GPTQ's inner loops on the CPU, compiled by numba; rows of the weight are independent and run in parallel.

A grid is given as (low, high, levels): codes are low .. high, or indices into sorted `levels` when there are any,
(1, n) for all rows or (out, n).
units = what a code stands for in units of the scale: code - zero point, or a level. # weight: (out, in)
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

#: Freedoms that let sums use vector units; NaN and infinity do not occur, order of sums may change.
_FAST = {"reassoc", "contract", "arcp", "nsz", "nnan", "ninf"}
_ONE = np.float32(1.0)
#: Rows that are rounded side by side; loops over 16 would be too short for vector units.
_LANES = 64
#: Columns that are looked at together, whether one of them moves.
_LOOKED_AT = 16
#: Less than half a unit by more than sums of units and zero points are rounded by.
_ALMOST_HALF = np.float32(0.499)


@numba.njit(fastmath=_FAST, cache=True, inline="always")  # type: ignore[untyped-decorator]
def _unit(value: Any, zero: Any, grid: Any, row: Any) -> Any:
    """Return the nearest unit to `value`, which is in units of the scale."""
    low, high, tables = grid
    if tables.shape[0] == 0:
        return min(max(np.rint(value + zero), low), high) - zero
    levels = tables[np.intp(row) if tables.shape[0] > 1 else np.intp(0)]
    first, last = 0, levels.shape[0] - 1
    while last - first > 1:
        middle = (first + last) // 2
        if levels[middle] <= value:
            first = middle
        else:
            last = middle
    return levels[first] if value - levels[first] <= levels[last] - value else levels[last]


@numba.njit(fastmath=_FAST, cache=True, inline="always")  # type: ignore[untyped-decorator]
def _error(values: Any, weights: Any, scale: Any, low: Any, high: Any) -> Any:
    """Return the weighted squared error of rounding to whole units between `low` and `high`."""
    inverse, error = _ONE / scale, np.float32(0.0)
    for k in range(values.shape[0]):
        difference = values[k] - min(max(np.rint(values[k] * inverse), low), high) * scale
        error += weights[k] * difference * difference
    return error


@numba.njit(fastmath=_FAST, cache=True, inline="always")  # type: ignore[untyped-decorator]
def _fitted(values: Any, weights: Any, scale: Any, low: Any, high: Any) -> Any:
    """Return the scale that fits the units of `scale` best, or 0 where there is none."""
    inverse, product, square = _ONE / scale, np.float32(0.0), np.float32(0.0)
    for k in range(values.shape[0]):
        unit = min(max(np.rint(values[k] * inverse), low), high)
        product += weights[k] * unit * values[k]
        square += weights[k] * unit * unit
    return product / square if square > 0 and product > 0 else np.float32(0.0)


@numba.njit(fastmath=_FAST, cache=True, inline="always")  # type: ignore[untyped-decorator]
def _settle(values: Any, weights: Any, best: Any, low: Any, high: Any) -> Any:
    """Return (error, scale) after alternating between units and scale while that helps; `best` is where to start."""
    error, scale = best
    for _ in range(3):
        trial = _fitted(values, weights, scale, low, high)
        if trial <= 0:
            break
        found = _error(values, weights, trial, low, high)
        if found >= error:
            break
        error, scale = found, trial
    return error, scale


@numba.njit(fastmath=_FAST, cache=True, inline="always")  # type: ignore[untyped-decorator]
def _nearby(values: Any, weights: Any, best: Any, step: Any, bounds: Any) -> Any:
    """Return (error, scale) of the best of `best` and the scales a `step` to either side of it."""
    (error, scale), (low, high) = best, bounds
    middle = scale
    for trial in (middle - step, middle + step):
        found = _error(values, weights, trial, low, high)
        if found < error:
            error, scale = found, trial
    return error, scale


@numba.njit(parallel=True, fastmath=_FAST, cache=True)  # type: ignore[untyped-decorator]
def search_symmetric(weight: Any, weights: Any, limits: Any, factors: Any, scale: Any) -> None:
    """Set `scale` (out,) to that of least weighted squared error for each row of `weight` (out, group).

    Tried are `factors` of the scale of the extremes, evenly spaced, and midway to those on either side of the best.
    """
    between = (factors[0] - factors[1]) / np.float32(2.0)
    low, high, reach = limits
    for row in numba.prange(weight.shape[0]):
        values = weight[row]
        amax = np.float32(0.0)
        for k in range(values.shape[0]):
            amax = max(amax, abs(values[k]))
        scale[row] = _ONE
        if amax > np.float32(1e-37):
            best, chosen = np.float32(np.inf), amax / reach
            for factor in factors:
                trial = factor * amax / reach
                error = _error(values, weights, trial, low, high)
                if error < best:
                    best, chosen = error, trial
            near = _nearby(values, weights, (best, chosen), between * amax / reach, (low, high))
            scale[row] = _settle(values, weights, near, low, high)[1]


@numba.njit(parallel=True, fastmath=_FAST, cache=True)  # type: ignore[untyped-decorator]
def search_asymmetric(  # noqa: C901  # numba compiles it as one
    weight: Any, weights: Any, limits: Any, factors: Any, scale: Any, zero: Any
) -> None:
    """Set `scale` and `zero` (out,) for each row of `weight` (out, group): zero points near that of the extremes."""
    first, last, _ = limits
    steps, between = last - first, (factors[0] - factors[1]) / np.float32(2.0)
    for row in numba.prange(weight.shape[0]):
        values = weight[row]
        least, most = np.float32(0.0), np.float32(0.0)
        for k in range(values.shape[0]):
            least, most = min(least, values[k]), max(most, values[k])
        scale[row], zero[row] = _ONE, first
        if most - least > np.float32(1e-37):
            plain = (most - least) / steps
            centre = np.rint(-least / plain)
            best, chosen, place, largest = np.float32(np.inf), plain, centre, plain
            for shift in range(-2, 3):
                below = centre + shift
                if below < 0 or below > steps:
                    continue
                # The least scale that clips nothing with this zero point.
                whole = np.float32(0.0)
                if below > 0:
                    whole = max(whole, -least / below)
                if steps - below > 0:
                    whole = max(whole, most / (steps - below))
                whole = min(whole, plain * np.float32(2.0))
                if whole <= 0:  # one bit, and all values on one side
                    continue
                for factor in factors:
                    error = _error(values, weights, factor * whole, -below, steps - below)
                    if error < best:
                        best, chosen, place, largest = error, factor * whole, below, whole
            near = _nearby(values, weights, (best, chosen), between * largest, (-place, steps - place))
            scale[row] = _settle(values, weights, near, -place, steps - place)[1]
            zero[row] = first + place


@numba.njit(fastmath=_FAST, cache=True, inline="always")  # type: ignore[untyped-decorator]
def _columns_of(rows: Any, start: Any, span: Any) -> Any:
    """Return columns of up to `_LANES` rows side by side, (span, _LANES); 0 where there is no row."""
    lanes = np.zeros((span, _LANES), np.float32)
    for row in range(rows.shape[0]):
        for k in range(span):
            lanes[k, row] = rows[row, start + k]
    return lanes


@numba.njit(fastmath=_FAST, cache=True, inline="always")  # type: ignore[untyped-decorator]
def _put_back(lanes: Any, rows: Any, start: Any) -> None:
    """Write columns that are side by side where they belong."""
    for row in range(rows.shape[0]):
        for k in range(lanes.shape[0]):
            rows[row, start + k] = lanes[k, row]


@numba.njit(parallel=True, fastmath=_FAST, cache=True)  # type: ignore[untyped-decorator]
def round_columns(weight: Any, targets: Any, root: Any, scales: Any, grid: Any, units: Any, start: Any) -> None:
    """Round columns of `weight` (out, in) from `start` on one by one, each after the errors of those before it.

    `targets` are the weights after the errors of columns before these, `root` is R, (in, in), `scales` are scale and
    zero point (out, n) and which of the n each of the columns to round has, (span,). Of those columns `units` are
    filled; `weight` becomes its errors w - q, `targets` what the rounding of each left of its own.
    """
    scale, zero, index = scales
    rows, span = weight.shape[0], index.shape[0]
    corner = np.ascontiguousarray(root[start : start + span, start : start + span])
    for block in numba.prange((rows + _LANES - 1) // _LANES):
        first = block * _LANES
        count = min(_LANES, rows - first)
        some = slice(first, first + count)
        # Columns of some rows side by side: a vector unit rounds and updates them at once.
        left, error = _columns_of(targets[some], start, span), _columns_of(weight[some], start, span)
        unit = np.empty((span, _LANES), np.float32)
        own, base = np.ones(_LANES, np.float32), np.zeros(_LANES, np.float32)
        for j in range(span):
            if j == 0 or index[j] != index[j - 1]:
                for row in range(count):
                    own[row], base[row] = scale[first + row, index[j]], zero[first + row, index[j]]
            for row in range(_LANES):
                found = _unit(left[j, row] * (_ONE / own[row]), base[row], grid, min(first + row, rows - 1))
                unit[j, row] = found
                left[j, row] -= found * own[row]
                error[j, row] -= found * own[row]
            for k in range(j + 1, span):
                factor = corner[j, k]
                for row in range(_LANES):
                    left[k, row] += error[j, row] * factor
        for lanes, rows_of in ((left, targets), (error, weight), (unit, units)):
            _put_back(lanes, rows_of[some], start)


@numba.njit(fastmath=_FAST, cache=True, inline="always")  # type: ignore[untyped-decorator]
def _stay(gradient: Any, steps: Any, tables: Any) -> Any:
    """Whether none of some columns gets to another whole unit, which is half a unit away at least."""
    if tables.shape[0] > 0:
        return False
    farthest = np.float32(0.0)
    for k in range(gradient.shape[0]):
        farthest = max(farthest, abs(gradient[k] * steps[k]))
    return farthest < _ALMOST_HALF


@numba.njit(parallel=True, fastmath=_FAST, cache=True)  # type: ignore[untyped-decorator]
def descend(units: Any, gradient: Any, moment: Any, scales: Any, grid: Any, sweeps: int) -> None:
    """Move each code to the best value for the others as they are, `sweeps` times over all columns.

    `gradient` is (weight - units * scale) @ moment, kept up to date; the error (w - q) H (w - q)^T only falls.
    """
    scale, zero, index = scales
    width = units.shape[1]
    diagonal = np.diag(moment).copy()
    for row in numba.prange(units.shape[0]):
        own, base = scale[row][index], zero[row][index]
        steps = _ONE / (diagonal * own)
        for _ in range(sweeps):
            moved = False
            for first in range(0, width, _LOOKED_AT):
                some = slice(first, min(first + _LOOKED_AT, width))
                # Few columns move: to see that none of some does is quicker, all at once, than to go through them.
                if _stay(gradient[row, some], steps[some], grid[2]):
                    continue
                for j in range(first, some.stop):
                    old = units[row, j]
                    unit = _unit(old + gradient[row, j] * steps[j], base[j], grid, row)
                    if unit != old:
                        step = (unit - old) * own[j]
                        units[row, j] = unit
                        moved = True
                        for k in range(width):
                            gradient[row, k] -= step * moment[j, k]
            if not moved:
                break
