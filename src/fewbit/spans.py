"""Codes, scales and minima of a weight under a scheme that finds them span by span, through compiled searches.

What a search starts from: the levels to which the largest magnitude of a group may be mapped, or the shares of its
range that may be cut off; and the codes that the largest scale of a span may have. # weight: (out, in)
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from fewbit.errors import MissingExtraError, SchemeError
from fewbit.formats.codebook import Codebook
from fewbit.formats.integer import Int
from fewbit.numerics.namespace import Array, array_namespace, device, to_numpy
from fewbit.numerics.threads import threads_for
from fewbit.ranges.span_search import SpanSearch
from fewbit.schemes.scheme import Scheme

#: Numbers that are worked on at a time.
_AT_ONCE = 1 << 22
#: What a weight counts at least, as a share of the mean of its row: columns that no input reached are rounded too.
_LEAST = 1e-6
_LARGEST = 65504.0


class Spans(NamedTuple):
    """What was found, each part in the framework of the weight."""

    #: (out, in)
    codes: Array
    #: float32 (out, groups), exact in float16; or codes of their own format, where scales are quantized.
    scale: Array
    #: What these are counted in, float32 (out, spans) and exact in float16.
    unit: Array | None
    #: Minima likewise, and the negative number that their codes are counted in.
    minimum: Array | None
    minimum_unit: Array | None


def searched(weight: Array, scheme: Scheme, importance: Array | None) -> Spans:
    """Return codes and parameters of `weight` (out, in) by the least squared error.

    `importance`, float32 (in,) or (out, in), weights the errors.

    Raises:
        SchemeError: a width that spans do not divide, or weights beyond what float16 scales reach.
        MissingExtraError: numba is not installed.

    """
    width = weight.shape[-1]
    require_spans(width, scheme)
    # What float32 holds as a subnormal only counts nothing beside the rest of its group, and groups of such are zeros.
    xp = array_namespace(weight)
    # Loops are compiled again for arrays that cannot be written to.
    values = np.require(to_numpy(xp.astype(weight, xp.float32, copy=False)), requirements=["C", "W"]).reshape(-1, width)
    shares = _shares(importance, width)
    # Where scales are floats nothing is needed beside what is returned, and joining parts would be a fifth of the time.
    rows = len(values) or 1 if scheme.scale_scheme is None else max(1, _AT_ONCE // width)
    parts = [
        _found(values[start : start + rows], shares[start : start + rows] if len(shares) > 1 else shares, scheme)
        for start in range(0, len(values), rows)
    ]
    found = [_joined(own) for own in zip(*parts, strict=True)]
    _require_reach(values, found, scheme)
    place, ahead = device(weight), tuple(weight.shape[:-1])
    return Spans(*(None if own is None else xp.asarray(own.reshape(*ahead, -1), device=place) for own in found))


def _joined(parts: tuple[Any, ...]) -> Any:
    """Return the rows of `parts` below one another, or `None` where there are none; one part is not copied."""
    return parts[0] if len(parts) == 1 or parts[0] is None else np.concatenate(parts)


def require_spans(width: int, scheme: Scheme) -> None:
    """Raise `SchemeError` when the spans of `scheme` do not divide rows of `width`."""
    if scheme.span is not None and width % scheme.span:
        raise SchemeError(f"in_features {width} is not a multiple of {scheme.span}, the span of {scheme}")


def _shares(importance: Array | None, width: int) -> Any:
    """Return what errors count, float32 (out or 1, in), with a mean of 1 in each row."""
    if importance is None:
        return np.ones((1, width), np.float32)
    counted = to_numpy(importance).astype(np.float64).reshape(-1, width)
    mean = counted.mean(axis=1, keepdims=True)
    return (np.divide(counted, mean, out=np.ones_like(counted), where=mean > 0) + _LEAST).astype(np.float32)


def _require_reach(values: Any, found: list[Any], scheme: Scheme) -> None:
    floats = [own for own in found[1:] if own is not None and own.dtype == np.float32]
    if any(np.abs(own).max() > _LARGEST for own in floats):
        raise SchemeError(
            f"weights of magnitude {np.abs(values).max():g} ask for scales beyond {_LARGEST:g}, the largest float16, "
            f"and '{scheme}' stores nothing wider; scale the weights down, or keep the layer float"
        )


def _found(values: Any, shares: Any, scheme: Scheme) -> tuple[Any, ...]:
    """Return codes, scales, their unit, minima and their unit of rows that are worked on at a time."""
    try:
        from fewbit.numerics import group_minima, group_scales, span_minima, span_scales
    except ImportError as error:
        raise MissingExtraError(f"{scheme} needs {error.name} to search scales; pip install 'fewbit[torch]'") from error
    with threads_for(values.size):
        if scheme.scale_scheme is None:
            return _searched_groups(values, shares, scheme, group_minima if scheme.minimum else group_scales)
        if scheme.minimum:
            return _searched_minima(values, shares, scheme, span_minima)
        return _searched_scales(values, shares, scheme, span_scales)


def _searched_groups(values: Any, shares: Any, scheme: Scheme, module: Any) -> tuple[Any, ...]:
    """Return the same where scales, and minima if there are any, are floats."""
    rows, size = len(values), _size(scheme, values)
    units = np.empty(values.shape, np.uint8 if scheme.minimum else np.int8)
    scales, minima = (np.empty((rows, values.shape[1] // size), np.float32) for _ in range(2))
    found = units.reshape(-1, size), scales.reshape(-1), minima.reshape(-1)
    weights = _in_groups(shares, size)
    module.search_scales(
        values.reshape(-1, size),
        weights,
        _grid(scheme),
        _starts(scheme, weighted=weights is not None),
        found if scheme.minimum else found[:2],
    )
    return _codes(scheme, units), scales, None, minima if scheme.minimum else None, None


def _searched_scales(values: Any, shares: Any, scheme: Scheme, module: Any) -> tuple[Any, ...]:
    """Return the same where scales are quantized."""
    number, span, sweeps = _nested(scheme)
    rows, size = len(values), _size(scheme, values)
    units, codes = np.empty(values.shape, np.int8), np.empty((rows, values.shape[1] // size), np.float32)
    scales = np.empty((rows, values.shape[1] // span), np.float32)
    low, high = np.float32(number.qmin), np.float32(number.qmax)
    tops = np.asarray([low, high, low + 1, high - 1, low + 2, high - 2], np.float32)
    weights = _in_groups(shares, size)
    module.search_spans(
        values.reshape(-1, size),
        weights,
        (*_grid(scheme), low, high, tops, sweeps),
        _starts(scheme, weighted=weights is not None),
        (units.reshape(-1, size), codes.reshape(-1), scales.reshape(-1)),
    )
    return _codes(scheme, units), codes.astype(np.int8), scales, None, None


def _searched_minima(values: Any, shares: Any, scheme: Scheme, module: Any) -> tuple[Any, ...]:
    """Return the same where scales and minima are quantized."""
    number, span, sweeps = _nested(scheme)
    rows, width = values.shape
    units = np.empty(values.shape, np.uint8)
    codes = np.empty((2, rows, width // _size(scheme, values)), np.float32)
    scales = np.empty((2, rows, width // span), np.float32)
    high = np.float32(number.qmax)
    tops = [(float(high - a), float(high - b)) for a in range(4) for b in range(4) if high - max(a, b) > 0]
    limits = _grid(scheme), high, np.asarray(tops, np.float32), sweeps
    starts = _starts(scheme, weighted=_in_groups(shares, 1) is not None)
    module.search_spans(values, shares, limits, starts, (units, codes, scales))
    kept = codes.astype(np.uint8)
    return units, kept[0], scales[0], kept[1], -scales[1]


def _nested(scheme: Scheme) -> tuple[Int, int, int]:
    """Return the integers that scales are, the columns of a span and the sweeps of its search."""
    inner, method = scheme.scale_scheme, scheme.ranging
    assert inner is not None
    assert isinstance(inner.format, Int)
    assert isinstance(method, SpanSearch)
    assert scheme.span is not None
    return inner.format, scheme.span, method.sweeps


def _size(scheme: Scheme, values: Any) -> int:
    return scheme.granularity.box((1, values.shape[1]))[1]


def _in_groups(shares: Any, size: int) -> Any:
    """Return what errors count (n, size), or `None` where they count alike."""
    return shares.reshape(-1, size) if (shares != shares[0, 0]).any() else None


def _codes(scheme: Scheme, units: Any) -> Any:
    """Return the codes of int8 or uint8 `units`."""
    if not isinstance(scheme.format, Codebook):
        return units
    levels = np.asarray(scheme.format.levels, np.int8)
    table = np.searchsorted(levels, np.arange(256, dtype=np.uint8).view(np.int8))
    return table.astype(np.uint8)[units.view(np.uint8)]


@lru_cache
def _grid(scheme: Scheme) -> Any:
    """Return the highest code beside minima; else the lowest and highest level, and a table of nearest ones if any."""
    form = scheme.format
    if scheme.minimum:
        return np.float32(form.levels[-1])
    table = None
    if isinstance(form, Codebook):
        # Where levels are whole and within 128, so are twice the middles between them: thresholds of this table.
        levels = np.asarray(form.levels, np.float32)
        places = (np.arange(512, dtype=np.float32) - 256.0) / 2.0 + 0.25
        table = levels[np.abs(places[:, None] - levels).argmin(1)]
    return np.float32(form.levels[0]), np.float32(form.levels[-1]), table


@lru_cache
def _starts(scheme: Scheme, *, weighted: bool) -> Any:
    """Return the levels that the largest magnitude of a group is mapped to; beside minima shares cut off, (n, 2).

    As many as lower the error by more than a hundredth in all, fewer where errors count alike.
    """
    levels, bits = scheme.format.levels, scheme.format.bits
    if scheme.minimum:
        # Where nothing is cut off, or less than half of a step, a weight that lies on the grid already is found again.
        if weighted or scheme.scale_scheme is not None:
            steps = (-0.15, 0.0, 0.25, 0.5, 0.8, 1.2, 1.7) if weighted else (0.0, 0.25, 0.6, 1.0, 1.5)
            pairs = [(low, high) for low in steps for high in steps]
        else:  # as many as take no longer than libgguf, which searches nothing then
            pairs = [(0.0, 0.4), (0.4, 0.0)] if bits == 4 else [(0.0, 0.0), (0.0, 0.45), (0.45, 0.0)]
        return np.asarray(pairs, np.float32) / np.float32(len(levels) - 1)
    few_levels = bits <= 3 or isinstance(scheme.format, Codebook)
    farthest = min(max(0.8, 0.24 * levels[-1]), 2.8)
    # Not 0.5: halfway between two levels rounding errors would decide.
    nearest = 0.4999 if few_levels else 0.5001
    shifts = np.linspace(-nearest, farthest, 3 if few_levels else {5: 8, 6: 10}.get(bits, 6))
    if bits == 4 and not (weighted or few_levels):
        return (levels[0] - shifts).astype(np.float32)  # the side of one level more
    return np.concatenate([levels[0] - shifts, levels[-1] + shifts]).astype(np.float32)
