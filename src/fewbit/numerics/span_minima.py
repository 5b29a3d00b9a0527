"""Scales and minima of the groups of a span, found with what they are stored in: x' = scale * code + minimum.

min over both of sum w (x - scale * code - minimum)^2. A group: from many starts, codes and both by least squares in
turn. A span: scale = unit * code, minimum = -unit' * code', by descent over codes and least squares of both units.
# values: (rows, in)
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from fewbit.numerics.float16 import half
from fewbit.numerics.lanes import FAST

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
#: Alternations between codes and parameters.
_ROUNDS = 4
#: A group of no greater range is constant.
_LEAST = np.float32(1e-30)


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _trial(values: Any, weights: Any, scale: Any, minimum: Any, most: Any) -> Any:
    """Return the error under scale and minimum, and sums of w r, w r q, w, w q, w q q; r is what is left by codes q."""
    inverse = _ONE / scale if scale != _ZERO else _ZERO
    error, left, product, count, units, squares = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    for k in range(values.shape[0]):
        moved = values[k] - minimum
        code = min(max(np.rint(moved * inverse), _ZERO), most)
        rest = moved - scale * code
        counted, weighted = weights[k] * rest, weights[k] * code
        error += counted * rest
        left += counted
        product += counted * code
        count += weights[k]
        units += weighted
        squares += weighted * code
    return error, left, product, count, units, squares


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _refit(trial: Any, scale: Any, minimum: Any, negative: Any) -> Any:
    """Return the least error for the codes of a trial, and the scale and minimum that leave it."""
    error, left, product, count, units, squares = trial
    determinant = count * squares - units * units
    if determinant > np.float32(1e-6) * count * squares:
        slope = (count * product - units * left) / determinant
        shift = (squares * left - units * product) / determinant
        if not negative or minimum + shift <= _ZERO:
            return error - slope * product - shift * left, scale + slope, minimum + shift
    elif count > _ZERO:  # codes are all alike
        shift = left / count
        if not negative or minimum + shift <= _ZERO:
            return error - shift * left, scale, minimum + shift
    if squares <= _ZERO:
        return error, scale, minimum
    # The least error without a minimum.
    whole = error + minimum * (np.float32(2.0) * left + minimum * count)
    through = product + minimum * units
    return whole - through * through / squares, scale + through / squares, _ZERO


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _fitted(values: Any, weights: Any, starts: Any, most: Any, negative: Any) -> Any:
    """Return scale and minimum of least error for one group; `starts` are what is cut off from both ends, as shares."""
    low, high = values[0], values[0]
    for k in range(values.shape[0]):
        low, high = min(low, values[k]), max(high, values[k])
    if negative:
        low, high = min(low, _ZERO), max(high, low)
    reach = high - low
    if reach <= _LEAST:
        return _ZERO, low
    best, scale, minimum = np.float32(np.inf), _ZERO, low
    for start in range(starts.shape[0]):
        below = starts[start, 0] * reach
        plain, least = (reach - below - starts[start, 1] * reach) / most, low + below
        if negative:
            least = min(least, _ZERO)
        trial = _trial(values, weights, plain, least, most)
        error, own, shifted = _refit(trial, plain, least, negative)
        if error < best and own > _ZERO:
            best, scale, minimum = error, own, shifted
    for _ in range(_ROUNDS):
        trial = _trial(values, weights, scale, minimum, most)
        error, own, shifted = _refit(trial, scale, minimum, negative)
        if not (error < best and own > _ZERO):
            break
        best, scale, minimum = error, own, shifted
    return scale, minimum


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _write(values: Any, scale: Any, minimum: Any, most: Any, units: Any) -> None:
    inverse = _ONE / scale if scale != _ZERO else _ZERO
    for k in range(values.shape[0]):
        units[k] = min(max(np.rint((values[k] - minimum) * inverse), _ZERO), most)


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _under(values: Any, weights: Any, both: Any, most: Any, codes: Any) -> Any:
    """Return the error of a span under its units, scale and minimum, and what they should be for the codes found."""
    unit, least = both
    size = values.shape[0] // codes.shape[1]
    total, a, b, c, p, r = _ZERO, _ZERO, _ZERO, _ZERO, _ZERO, _ZERO
    for group in range(codes.shape[1]):
        own, code, lower = slice(group * size, (group + 1) * size), codes[0, group], codes[1, group]
        error, left, product, count, units, squares = _trial(
            values[own], weights[own], unit * code, -least * lower, most
        )
        total += error
        a += code * code * squares
        b -= code * lower * units
        c += lower * lower * count
        p += code * product
        r -= lower * left
    determinant = a * c - b * b
    if determinant > np.float32(1e-6) * a * c:
        return total, unit + (c * p - b * r) / determinant, least + (a * r - b * p) / determinant
    return total, unit + p / a if a > _ZERO else unit, least


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _descend(values: Any, weights: Any, both: Any, limits: Any, codes: Any) -> None:
    """Move the codes of each group to neighbours, the minimum to the best for the scale, while the error falls."""
    most, highest = limits
    unit, least = both
    inverse = _ONE / least if least != _ZERO else _ZERO
    size = values.shape[0] // codes.shape[1]
    for group in range(codes.shape[1]):
        own = slice(group * size, (group + 1) * size)
        centre = codes[0, group]
        best = _trial(values[own], weights[own], unit * centre, -least * codes[1, group], most)[0]
        for step in (_ZERO, -_ONE, _ONE):
            code, lower = centre + step, codes[1, group]
            if code < _ZERO or code > highest:
                continue
            for _ in range(2):
                trial = _trial(values[own], weights[own], unit * code, -least * lower, most)
                if trial[0] < best:
                    best = trial[0]
                    codes[0, group], codes[1, group] = code, lower
                moved = lower - np.rint(trial[1] / trial[3] * inverse) if trial[3] > _ZERO else lower
                moved = min(max(moved, _ZERO), highest)
                if moved == lower:
                    break
                lower = moved
            error = _trial(values[own], weights[own], unit * code, -least * lower, most)[0]
            if error < best:
                best = error
                codes[0, group], codes[1, group] = code, lower


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _start(values: Any, weights: Any, limits: Any, tops: Any, wanted: Any) -> Any:
    """Return the units of scales and minima, and the codes under them, for those `wanted` (2, groups) of one span."""
    most, highest = limits
    codes, trials = np.zeros_like(wanted), np.zeros_like(wanted)
    largest, lowest = _ZERO, _ZERO
    for group in range(codes.shape[1]):
        largest, lowest = max(largest, wanted[0, group]), min(lowest, wanted[1, group])
    unit, least, best = _ZERO, _ZERO, np.float32(np.inf)
    for top in range(tops.shape[0]):
        trying, deep = half(largest / tops[top, 0]), half(-lowest / tops[top, 1])
        for group in range(codes.shape[1]):
            trials[0, group] = min(np.rint(wanted[0, group] / trying), highest) if trying != _ZERO else _ZERO
            trials[1, group] = min(np.rint(-wanted[1, group] / deep), highest) if deep != _ZERO else _ZERO
        error = _under(values, weights, (trying, deep), most, trials)[0]
        if error < best:
            best, unit, least = error, trying, deep
            codes[:] = trials
    return unit, least, codes


@numba.njit(fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def _settle(values: Any, weights: Any, limits: Any, found: Any, sweeps: int) -> Any:
    """Return what `found`, two units and codes, becomes by descent and by least squares, in turn."""
    unit, least, codes = found
    for _ in range(sweeps):
        _descend(values, weights, (unit, least), limits, codes)
        error, wanted, lowest = _under(values, weights, (unit, least), limits[0], codes)
        trying, deep = half(wanted), half(lowest)
        if (trying == unit and deep == least) or trying <= _ZERO or deep < _ZERO:
            break
        if not _under(values, weights, (trying, deep), limits[0], codes)[0] < error:
            break
        unit, least = trying, deep
    return unit, least, codes


@numba.njit(parallel=True, fastmath=FAST, cache=True)  # type: ignore[untyped-decorator]
def search_spans(values: Any, weights: Any, limits: Any, starts: Any, found: Any) -> None:
    """Set uint8 codes (rows, in), those of scales and minima (2, rows, groups) and units (2, rows, spans), `found`.

    `limits`: the highest code, that of scales and minima, what those of the largest may be (n, 2), and sweeps.
    """
    units, codes, scales = found
    most, highest, tops, sweeps = limits
    rows, spans = scales.shape[1:]
    span, groups = values.shape[1] // spans, codes.shape[2] // spans
    size = span // groups
    for row in numba.prange(rows):
        counted = weights[np.intp(row) if weights.shape[0] > 1 else np.intp(0)]
        wanted = np.empty((2, groups), np.float32)
        for place in range(spans):
            own = slice(place * span, (place + 1) * span)
            own_values, own_weights, own_units = values[row, own], counted[own], units[row, own]
            for group in range(groups):
                part = slice(group * size, (group + 1) * size)
                scale, minimum = _fitted(own_values[part], own_weights[part], starts, most, True)
                wanted[0, group], wanted[1, group] = scale, minimum
            begun = _start(own_values, own_weights, (most, highest), tops, wanted)
            unit, least, kept = _settle(own_values, own_weights, (most, highest), begun, sweeps)
            scales[0, row, place], scales[1, row, place] = unit, least
            for group in range(groups):
                part, at = slice(group * size, (group + 1) * size), place * groups + group
                codes[0, row, at], codes[1, row, at] = kept[0, group], kept[1, group]
                _write(own_values[part], unit * kept[0, group], -least * kept[1, group], most, own_units[part])
