"""The two passes around an integer product, compiled: rows of inputs to codes, and sums of codes to outputs.

code = clip(round(x / s) + z, qmin, qmax) - middle; output = s (sum - (z - middle) weight_sum) + bias.
Threads are those of an executor: numba's own may be entered by one thread only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, TypeVar

import numba
import numpy as np

from fewbit.formats.integer import Int

_Pass = TypeVar("_Pass", bound=Callable[..., None])
#: Smaller jobs are done sooner by one thread than shared out.
_SHARED_FROM = 1 << 17
#: The least normal float32, and the bits of infinity.
LEAST = np.float32(np.finfo(np.float32).smallest_normal)
INFINITE = np.int32(0x7F800000)


def compiled_pass(function: _Pass) -> _Pass:
    """Return `function` compiled; it holds no lock while it runs."""
    compiled: _Pass = numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    return compiled


@dataclass(frozen=True, slots=True)
class CodeRange:
    """What the passes have to know of an integer format: float32 (qmin, qmax, middle, reciprocal of the steps)."""

    numbers: Any
    symmetric: bool

    @classmethod
    @cache
    def of(cls, integer: Int, *, symmetric: bool) -> CodeRange:
        """Return the range of `integer`; less the middle, codes are those of a signed byte."""
        steps = integer.reach if symmetric else float(integer.qmax - integer.qmin)
        middle = 0.0 if integer.signed else 128.0
        return cls(np.asarray([integer.qmin, integer.qmax, middle, np.float32(1.0 / steps)], np.float32), symmetric)


@compiled_pass
def extremes(x: Any, low: Any, high: Any) -> None:
    """Write the extremes of each row of `x`, widened to hold 0; NaN where the row holds one.

    Floats are compared as integers in the order of their values, which is vectorized and finds NaN beyond infinity.
    """
    bits = x.view(np.int32)
    for row in range(x.shape[0]):
        least, most = np.int32(0), np.int32(0)
        for column in range(x.shape[1]):
            own = bits[row, column]
            ordered = own ^ ((own >> 31) & np.int32(0x7FFFFFFF))
            least, most = min(least, ordered), max(most, ordered)
        if most > INFINITE or least < ~INFINITE:
            low[row] = high[row] = np.nan
            continue
        # Only the extremes are read as floats: the largest magnitudes of either sign.
        ends = np.empty(2, np.int32)
        ends[0], ends[1] = least ^ ((least >> 31) & np.int32(0x7FFFFFFF)), most
        values = ends.view(np.float32)
        low[row] = values[0] if values[0] <= -LEAST else np.float32(0.0)
        high[row] = values[1] if values[1] >= LEAST else np.float32(0.0)


@compiled_pass
def parameters(low: Any, high: Any, scale: Any, zero: Any, numbers: Any, symmetric: bool) -> None:
    """Write scales and zero points for bounds `low <= 0 <= high`, as `Grid.parameters` computes them."""
    for row in range(low.shape[0]):
        span = max(-low[row], high[row]) if symmetric else high[row] - low[row]
        own = span * numbers[3]
        scale[row] = np.float32(1.0) if own < LEAST else own
        zero[row] = np.float32(0.0)
        if not symmetric:
            place = np.rint(-low[row] * (np.float32(1.0) / scale[row])) + numbers[0]
            zero[row] = min(max(place, numbers[0]), numbers[1])


@compiled_pass
def to_codes(x: Any, scale: Any, zero: Any, codes: Any, numbers: Any) -> None:
    """Write the codes of `x` (rows, in) under a scale and a zero point a row."""
    low, high, middle = numbers[0], numbers[1], numbers[2]
    for row in range(x.shape[0]):
        inverse = np.float32(1.0) / scale[row]
        own = zero[row]
        nan = False
        for column in range(x.shape[1]):
            value = x[row, column]
            nan |= np.isnan(value)
            value = value if abs(value) >= LEAST else np.float32(0.0)  # as the reference flushes
            codes[row, column] = min(max(np.rint(value * inverse) + own, low), high) - middle
        if nan:  # no code stands for it, so the whole row of outputs does
            scale[row] = np.nan


@compiled_pass
def token_codes(x: Any, scale: Any, zero: Any, codes: Any, numbers: Any, symmetric: bool) -> None:
    """Write codes, scales and zero points of rows that each have their own range."""
    low, high = np.empty(1, np.float32), np.empty(1, np.float32)
    for row in range(x.shape[0]):
        own = slice(row, row + 1)
        extremes(x[own], low, high)
        parameters(low, high, scale[own], zero[own], numbers, symmetric)
        to_codes(x[own], scale[own], zero[own], codes[own], numbers)


@compiled_pass
def to_outputs(sums: Any, scale: Any, zero: Any, weight_sum: Any, bias: Any) -> None:
    """Turn `sums` (rows, out) into outputs in place; `zero` is that of the codes that were added up."""
    for row in range(sums.shape[0]):
        own, shift = scale[row], zero[row]
        for column in range(sums.shape[1]):
            sums[row, column] = own * (sums[row, column] - shift * weight_sum[column]) + bias[column]


def shared_out(work: Callable[..., None], threads: int, rows: list[Any], *rest: Any, size: int | None = None) -> None:
    """Call `work(*rows, *rest)`, or with parts of every array of `rows` in several threads.

    `size` is how many numbers the work is about, if not those of the first array.
    """
    count = rows[0].shape[0]
    parts = min(threads, count) if (size or rows[0].size) >= _SHARED_FROM else 1
    if parts == 1:
        work(*rows, *rest)
        return
    cuts = [count * part // parts for part in range(parts + 1)]
    jobs = [_pool().submit(work, *(array[start:stop] for array in rows), *rest) for start, stop in pairwise(cuts[1:])]
    work(*(array[: cuts[1]] for array in rows), *rest)
    for job in jobs:
        job.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="fewbit")


if hasattr(os, "register_at_fork"):  # a child has the executor, but none of its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
