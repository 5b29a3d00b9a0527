"""Scales of the groups of a span, found together with what they are stored in: x' = scale * level, no minimum.

min over scales of sum w (x - scale * level)^2. A group: from many starts, codes and scale by least squares in turn. A
span: scale = unit * code, by descent over neighbouring codes and least squares of the unit. # values: (rows, in)
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from fewbit.numerics.float16 import half

#: Freedoms that let sums use vector units; NaN and infinity do not occur, order of sums may change.
FAST = {"reassoc", "contract", "arcp", "nsz", "nnan", "ninf"}
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
#: A group with no greater magnitude is one of zeros: its scale is 0.
LEAST = np.float32(1e-30)
#: Alternations between codes and scale.
_ROUNDS = 4


@numba.njit(fastmath=FAST, cache=True, inline="always")  # type: ignore[untyped-decorator]
def _entry(value: Any, table: Any) -> Any:
    """Return the nearest of some whole numbers, listed in `table` for every half from -128 to 128."""
    place = min(max(np.floor(value + value) + np.float32(256.0), _ZERO), np.float32(511.0))
    return table[np.int32(place)]


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _trial(values: Any, weights: Any, scale: Any, grid: Any) -> Any:
    """Return the error under `scale`, and of the units found sum w r u, r being what is left, and sum w u u."""
    inverse = _ONE / scale if scale != _ZERO else _ZERO
    error, product, square = _ZERO, _ZERO, _ZERO
    low, high, table = grid  # read here: loops are on vectors only where they read nothing else
    if table.shape[0]:
        for k in range(values.shape[0]):
            unit = _entry(values[k] * inverse, table)
            left, counted = values[k] - scale * unit, weights[k] * unit
            error += weights[k] * left * left
            product += counted * left
            square += counted * unit
        return error, product, square
    for k in range(values.shape[0]):
        unit = min(max(np.rint(values[k] * inverse), low), high)
        left, counted = values[k] - scale * unit, weights[k] * unit
        error += weights[k] * left * left
        product += counted * left
        square += counted * unit
    return error, product, square


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _fitted(values: Any, weights: Any, starts: Any, grid: Any) -> Any:
    """Return the scale of least error for one group; `starts` are what its largest magnitude may be mapped to."""
    low, high = values[0], values[0]
    for k in range(values.shape[0]):
        low, high = min(low, values[k]), max(high, values[k])
    largest = high if high > -low else low
    if abs(largest) <= LEAST:
        return _ZERO
    best, chosen = np.float32(np.inf), _ZERO
    for start in starts:
        scale = largest / start
        error, product, square = _trial(values, weights, scale, grid)
        if square > _ZERO:
            error -= product * product / square
            scale += product / square
        if error < best:
            best, chosen = error, scale
    for _ in range(_ROUNDS):
        error, product, square = _trial(values, weights, chosen, grid)
        if not square > _ZERO or not error - product * product / square < best:
            break
        best = error - product * product / square
        chosen += product / square
    return chosen


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _write(values: Any, scale: Any, grid: Any, units: Any) -> None:
    inverse = _ONE / scale if scale != _ZERO else _ZERO
    low, high, table = grid
    for k in range(values.shape[0]):
        value = values[k] * inverse
        units[k] = _entry(value, table) if table.shape[0] else min(max(np.rint(value), low), high)


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _in_float16(values: Any, weights: Any, starts: Any, grid: Any) -> Any:
    """Return the float16 scale of least error for one group."""
    chosen = half(_fitted(values, weights, starts, grid))
    best, product, square = _trial(values, weights, chosen, grid)
    other = half(chosen + product / square) if square > _ZERO else chosen
    return other if _trial(values, weights, other, grid)[0] < best else chosen


@numba.njit(parallel=True, fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def search_scales(values: Any, weights: Any, grid: Any, starts: Any, found: Any) -> None:
    """Set units (rows, in) and float16 scales (rows, groups), `found`; `weights` are (rows or 1, in)."""
    units, scales = found
    low, high, table = grid
    rows, groups = scales.shape
    size = values.shape[1] // groups
    for row in numba.prange(rows):
        counted = weights[np.intp(row) if weights.shape[0] > 1 else np.intp(0)]
        for group in range(groups):
            own = slice(group * size, (group + 1) * size)
            scale = _in_float16(values[row, own], counted[own], starts, (low, high, table))
            scales[row, group] = scale
            _write(values[row, own], scale, (low, high, table), units[row, own])


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _under(values: Any, weights: Any, unit: Any, grid: Any, codes: Any) -> Any:
    """Return the error of a span under `unit` x `codes`, and by how much the unit should change."""
    size = values.shape[0] // codes.shape[0]
    total, products, squares = _ZERO, _ZERO, _ZERO
    for group in range(codes.shape[0]):
        own, code = slice(group * size, (group + 1) * size), codes[group]
        error, product, square = _trial(values[own], weights[own], unit * code, grid)
        total += error
        products += code * product
        squares += code * code * square
    return total, products / squares if squares > _ZERO else _ZERO


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _descend(values: Any, weights: Any, unit: Any, grids: Any, codes: Any) -> None:
    """Move each of `codes` to a neighbour while that lowers the error of its group."""
    grid, least, most = grids
    size = values.shape[0] // codes.shape[0]
    for group in range(codes.shape[0]):
        own = slice(group * size, (group + 1) * size)
        best = _trial(values[own], weights[own], unit * codes[group], grid)[0]
        for direction in (-_ONE, _ONE):
            while least <= codes[group] + direction <= most:
                error = _trial(values[own], weights[own], unit * (codes[group] + direction), grid)[0]
                if not error < best:
                    break
                best = error
                codes[group] += direction


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _start(values: Any, weights: Any, grids: Any, tops: Any, wanted: Any) -> Any:
    """Return a unit, and the codes under it, for the scales `wanted` of one span."""
    grid, least, most = grids
    largest = _ZERO
    for scale in wanted:
        largest = scale if abs(scale) > abs(largest) else largest
    codes, trials = np.zeros_like(wanted), np.empty_like(wanted)
    best, unit = np.float32(np.inf), _ZERO
    for top in tops:
        trying = half(largest / top)
        if trying != _ZERO:
            for group in range(codes.shape[0]):
                trials[group] = min(max(np.rint(wanted[group] / trying), least), most)
            error = _under(values, weights, trying, grid, trials)[0]
            if error < best:
                best, unit = error, trying
                codes[:] = trials
    return unit, codes


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _settle(values: Any, weights: Any, grids: Any, found: Any, sweeps: int) -> Any:
    """Return what `found`, a unit and codes, becomes by descent and by least squares, in turn."""
    unit, codes = found
    for _ in range(sweeps):
        _descend(values, weights, unit, grids, codes)
        error, change = _under(values, weights, unit, grids[0], codes)
        other = half(unit + change)
        if other in (unit, _ZERO) or not _under(values, weights, other, grids[0], codes)[0] < error:
            break
        unit = other
    return unit, codes


@numba.njit(parallel=True, fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def search_spans(values: Any, weights: Any, limits: Any, starts: Any, found: Any) -> None:
    """Set units (rows, in), codes of scales (rows, groups) and their float16 units (rows, spans), `found`.

    `limits`: lowest and highest level, their table, lowest and highest code of scales, what that of the largest may
    be, and how many sweeps.
    """
    units, codes, scales = found
    low, high, table, least, most, tops, sweeps = limits
    rows, spans = scales.shape
    span, groups = values.shape[1] // spans, codes.shape[1] // spans
    size = span // groups
    for row in numba.prange(rows):
        grid = low, high, table
        counted = weights[np.intp(row) if weights.shape[0] > 1 else np.intp(0)]
        wanted = np.empty(groups, np.float32)
        for place in range(spans):
            own = slice(place * span, (place + 1) * span)
            own_values, own_weights, own_units = values[row, own], counted[own], units[row, own]
            for group in range(groups):
                part = slice(group * size, (group + 1) * size)
                wanted[group] = _fitted(own_values[part], own_weights[part], starts, grid)
            begun = _start(own_values, own_weights, (grid, least, most), tops, wanted)
            unit, kept = _settle(own_values, own_weights, (grid, least, most), begun, sweeps)
            scales[row, place] = unit
            for group in range(groups):
                part = slice(group * size, (group + 1) * size)
                codes[row, place * groups + group] = kept[group]
                _write(own_values[part], unit * kept[group], grid, own_units[part])
