"""How the weights of a layer lie on the levels that its codes can have, counted in units of the scale.

u = weight / scale + zero point, or (weight - minimum) / scale: on this axis every group of a layer has the same levels,
whatever its scale is. Bins are centred on multiples of their width, and the axis depends on the levels only, so that
layers can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fewbit.numerics.namespace import Array, array_namespace, to_numpy
from fewbit.qtensor import QTensor

#: Bins of an axis, about; the width is the least power of two that gives no more.
_BINS = 80
#: With more levels than these the codes of each are not counted: a picture cannot show them.
_FEW_LEVELS = 64
#: Weights that are worked on at a time: what a cache holds.
_AT_ONCE = 1 << 18
#: A largest weight lies so much further out, as a share, where its scale was rounded down to 16 bits.
_ROUNDED_SCALE = 2.0**-8


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelHistogram:
    """The weights of a layer in bins, and its codes by level. All counts are of whole layers."""

    #: Every value that a code can stand for, in units of the scale, ascending; with a zero point the codes themselves.
    levels: tuple[float, ...] = field(metadata={"listed": True})
    #: Middle of the first bin, and the width of all.
    start: float
    width: float
    #: Weights in each bin; the first and the last hold what lies beyond, too.
    weights: tuple[int, ...]
    #: Codes at each level; `None` for more than 64 levels.
    codes: tuple[int, ...] | None
    #: Levels that have a code.
    used: int
    #: Weights that are more than half a step below the lowest level, and above the highest.
    clipped: tuple[int, int]
    #: The least scale, the median and the greatest; 1 or 0 may be that of a group of zeros, GGUF has negative ones.
    scales: tuple[float, float, float]


def level_histogram(weight: Array, qtensor: QTensor) -> LevelHistogram:
    """Return how `weight` (out, in) lies on the levels of `qtensor`, which it became.

    >>> from fewbit.qtensor import quantize
    >>> from fewbit.schemes.notation import parse_scheme
    >>> weight = np.asarray([[-1.0, 0.0, 0.25, 1.0]], np.float32)
    >>> level_histogram(weight, quantize(weight, parse_scheme("ternary channel absmax"))).codes
    (1, 2, 1)
    """
    levels = qtensor.scheme.format.levels
    start, width, bins = axis(levels)
    low, high = limits(levels)
    counts, below, above = np.zeros(bins, np.int64), 0, 0
    for units in in_units(weight, qtensor):
        below += int(np.count_nonzero(units < low))
        above += int(np.count_nonzero(units > high))
        counts += counted([units], start, width, bins)
    codes = _codes(qtensor)
    scales = to_numpy(qtensor.scale_values())
    return LevelHistogram(
        levels=levels,
        start=start,
        width=width,
        weights=tuple(counts.tolist()),
        codes=tuple(codes.tolist()) if len(levels) <= _FEW_LEVELS else None,
        used=int(np.count_nonzero(codes)),
        clipped=(below, above),
        scales=(float(scales.min()), float(np.median(scales)), float(scales.max())),
    )


def axis(levels: tuple[float, ...]) -> tuple[float, float, int]:
    """Return the middle of the first bin, the width of all and their number for sorted `levels`.

    The axis goes a step beyond the outer levels, or a sixteenth of the range where that is more.

    >>> axis(tuple(range(-8, 8)))
    (-9.0, 0.25, 69)
    """
    span = levels[-1] - levels[0]
    beyond = max(span / 16, span / (len(levels) - 1))
    width = 2.0 ** math.ceil(math.log2((span + 2 * beyond) / _BINS))
    first, last = math.floor((levels[0] - beyond) / width + 0.5), math.ceil((levels[-1] + beyond) / width - 0.5)
    return first * width, width, last - first + 1


def limits(levels: tuple[float, ...]) -> tuple[float, float]:
    """Return how far out a number may lie and still be rounded to an outer level as well as to one amid others."""
    low, high = ((levels[end] + (levels[end] - levels[beside]) / 2) for end, beside in ((0, 1), (-1, -2)))
    return low * (1.0 + _ROUNDED_SCALE), high * (1.0 + _ROUNDED_SCALE)


def counted(parts: Iterable[Any], start: float, width: float, bins: int) -> Any:
    """Return how many numbers of NumPy arrays fall into each bin; the outer ones take what lies beyond."""
    counts = np.zeros(bins, np.int64)
    for units in parts:
        places = np.clip(units * (1.0 / width) + (0.5 - start / width), 0.0, bins - 0.5)
        counts += np.bincount(places.astype(np.intp).ravel(), minlength=bins)
    return counts


def in_units(weight: Array, qtensor: QTensor) -> Iterator[Any]:
    """Yield rows of `weight` divided by their scales, zero points added, as float32 NumPy arrays that fit a cache."""
    xp = array_namespace(weight)
    rows, columns = weight.shape
    tall, wide = qtensor.scheme.granularity.box((rows, columns))
    scale, minimum = to_numpy(qtensor.scale_values()), qtensor.minimum_values()
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0.0)
    zero = None if qtensor.zero_point is None else to_numpy(qtensor.zero_point).astype(np.float32)
    if minimum is not None:
        zero = -to_numpy(minimum) * inverse
    at_once = max(1, _AT_ONCE // columns)
    for first in range(0, rows, at_once):
        own = slice(first, min(first + at_once, rows))
        boxes = np.arange(own.start, own.stop) // tall
        units = to_numpy(xp.astype(weight[own, :], xp.float32)) * _across(inverse[boxes], wide, columns)
        yield units if zero is None else units + _across(zero[boxes], wide, columns)


def _across(parameters: Any, wide: int, columns: int) -> Any:
    """Return parameters (rows, boxes) for each column, or as one column where a row has one box."""
    return parameters if parameters.shape[1] == 1 else np.repeat(parameters, wide, axis=1)[:, :columns]


def _codes(qtensor: QTensor) -> Any:
    """Return how many codes stand for each level; the two zeros of floats are one."""
    levels = np.asarray(qtensor.scheme.format.levels, np.float32)
    codes = to_numpy(qtensor.codes)
    patterns = codes.reshape(-1).view(f"u{codes.dtype.itemsize}")
    counts = np.bincount(patterns)
    present = np.flatnonzero(counts)
    values = qtensor.scheme.format.decode(present.astype(patterns.dtype).view(codes.dtype))
    return np.bincount(np.searchsorted(levels, values), weights=counts[present], minlength=len(levels)).astype(np.int64)
