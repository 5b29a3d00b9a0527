"""Exact k-means of numbers on a line, row by row: the levels of least weighted squared error.

D[c][j] = min over i of D[c - 1][i] + cost(i, j) over sorted numbers; the best i grows with j, so that halving finds all
in n log n steps for each c. Source: Grønlund et al., Fast exact k-means in one dimension, arXiv 1701.07204.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from fewbit.numerics.threads import threads_for


def learned_levels(values: Any, weights: Any, count: int) -> Any:
    """Return the `count` levels (rows, count), ascending float32, of least sum of `weights` x squared error.

    `values` and `weights` are (rows, n). Levels that a row has no use for repeat others.
    """
    values, weights = (np.ascontiguousarray(part, np.float64) for part in (values, weights))
    order = np.argsort(values, axis=1, kind="stable")
    ordered, counted = (np.take_along_axis(part, order, axis=1) for part in (values, weights))
    levels = np.empty((len(values), count))
    with threads_for(values.size):
        _levels(ordered, counted, levels)
    return levels.astype(np.float32)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _cost(sums: Any, start: int, stop: int) -> Any:
    """Return the error of one level for the numbers from `start` to `stop`."""
    weight = sums[0, stop] - sums[0, start]
    if weight <= 0.0:
        return 0.0
    first = sums[1, stop] - sums[1, start]
    return max(sums[2, stop] - sums[2, start] - first * first / weight, 0.0)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def _next(sums: Any, before: Any, after: Any, cut: Any, stack: Any) -> None:
    """Set `after` to the errors with one level more than in `before`, and `cut` to where the last level begins."""
    stack[0, 0], stack[0, 1], stack[0, 2], stack[0, 3] = 0, before.shape[0] - 1, 0, before.shape[0] - 1
    depth = 1
    while depth > 0:
        depth -= 1
        low, high, least, most = stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3]
        middle = (low + high) // 2
        best, place = np.inf, least
        for start in range(least, min(most, middle) + 1):
            found = before[start] + _cost(sums, start, middle)
            if found < best:
                best, place = found, start
        after[middle], cut[middle] = best, place
        if low < middle:
            stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = low, middle - 1, least, place
            depth += 1
        if middle < high:
            stack[depth, 0], stack[depth, 1], stack[depth, 2], stack[depth, 3] = middle + 1, high, place, most
            depth += 1


@numba.njit(parallel=True, cache=True)  # type: ignore[untyped-decorator]
def _levels(values: Any, weights: Any, levels: Any) -> None:
    rows, size = values.shape
    count = levels.shape[1]
    for row in numba.prange(rows):
        # Around their mean sums of squares lose the least.
        mean = values[row].mean()
        sums = np.zeros((3, size + 1))
        for k in range(size):
            value, weight = values[row, k] - mean, weights[row, k]
            sums[0, k + 1] = sums[0, k] + weight
            sums[1, k + 1] = sums[1, k] + weight * value
            sums[2, k + 1] = sums[2, k] + weight * value * value
        cuts = np.zeros((count, size + 1), np.int32)
        before, after = np.empty(size + 1), np.empty(size + 1)
        stack = np.empty((128, 4), np.int64)
        for stop in range(size + 1):
            before[stop] = _cost(sums, 0, stop)
        for number in range(1, count):
            _next(sums, before, after, cuts[number], stack)
            before, after = after, before
        stop = size
        for number in range(count - 1, -1, -1):
            start = cuts[number, stop] if number else 0
            weight = sums[0, stop] - sums[0, start]
            if weight > 0.0:
                levels[row, number] = mean + (sums[1, stop] - sums[1, start]) / weight
            elif stop > start:
                levels[row, number] = values[row, start:stop].mean()
            else:  # fewer numbers than levels
                levels[row, number] = levels[row, number + 1] if number + 1 < count else values[row, size - 1]
            stop = start
        levels[row].sort()
