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
from fewbit.numerics.namespace import Array, array_namespace, device, to_float32, to_numpy
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
    values = np.ascontiguousarray(to_numpy(to_float32(weight))).reshape(-1, width)
    shares = _shares(importance, width)
    rows = max(1, _AT_ONCE // width)
    parts = [
        _found(values[start : start + rows], shares[start : start + rows] if len(shares) > 1 else shares, scheme)
        for start in range(0, len(values), rows)
    ]
    found = [None if own[0] is None else np.concatenate(own) for own in zip(*parts, strict=True)]
    _require_reach(values, found, scheme)
    xp, place, ahead = array_namespace(weight), device(weight), tuple(weight.shape[:-1])
    return Spans(*(None if own is None else xp.asarray(own.reshape(*ahead, -1), device=place) for own in found))


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
        from fewbit.numerics import span_minima, span_scales
    except ImportError as error:
        raise MissingExtraError(f"{scheme} needs {error.name} to search scales; pip install 'fewbit[torch]'") from error
    with threads_for(values.size):
        return _search(values, shares, scheme, span_minima if scheme.minimum else span_scales)


def _search(values: Any, shares: Any, scheme: Scheme, module: Any) -> tuple[Any, ...]:
    rows, width = values.shape
    assert isinstance(scheme.ranging, SpanSearch)
    assert scheme.span is not None
    kinds, inner = (2,) if scheme.minimum else (), scheme.scale_scheme
    size = scheme.granularity.box((1, width))[1]
    units = np.empty_like(values)
    groups = np.empty((*kinds, rows, width // size), np.float32)
    spans = np.empty((*kinds, rows, width // scheme.span), np.float32)
    grid, starts = _grid(scheme), _starts(scheme, weighted=bool((shares != shares[0, 0]).any()))
    if inner is None:
        parts = tuple(groups) if scheme.minimum else (groups,)
        module.search_scales(values, shares, grid, starts, (units, *parts))
    else:
        module.search_spans(values, shares, _nested(scheme, grid), starts, (units, groups, spans))
    return _stored(scheme, units, groups, spans)


def _stored(scheme: Scheme, units: Any, groups: Any, spans: Any) -> tuple[Any, ...]:
    """Return units and parameters as they are stored."""
    form, inner = scheme.format, scheme.scale_scheme
    if isinstance(form, Codebook):
        codes = np.searchsorted(np.asarray(form.levels, np.float32), units).astype(np.uint8)
    else:
        codes = units.astype(np.int8 if form.signed else np.uint8)  # type: ignore[attr-defined]
    if inner is None:
        scale, minimum = groups if scheme.minimum else (groups, None)
        return codes, scale, None, minimum, None
    kept = groups.astype(np.int8 if inner.format.signed else np.uint8)  # type: ignore[attr-defined]
    if scheme.minimum:
        return codes, kept[0], spans[0], kept[1], -spans[1]
    return codes, kept, spans, None, None


@lru_cache
def _grid(scheme: Scheme) -> Any:
    """Return the highest code beside minima; else the lowest and the highest level, and a table of nearest ones."""
    form = scheme.format
    if scheme.minimum:
        return np.float32(form.levels[-1])
    table = np.zeros(0, np.float32)
    if isinstance(form, Codebook):
        # Where levels are whole and within 128, so are twice the middles between them: thresholds of this table.
        levels = np.asarray(form.levels, np.float32)
        places = (np.arange(512, dtype=np.float32) - 256.0) / 2.0 + 0.25
        table = levels[np.abs(places[:, None] - levels).argmin(1)]
    return np.float32(form.levels[0]), np.float32(form.levels[-1]), table


def _nested(scheme: Scheme, grid: Any) -> tuple[Any, ...]:
    """Return what a search of quantized scales takes: the grid, limits and first codes of the largest, sweeps."""
    inner, method = scheme.scale_scheme, scheme.ranging
    assert inner is not None
    assert isinstance(inner.format, Int)
    assert isinstance(method, SpanSearch)
    low, high = np.float32(inner.format.qmin), np.float32(inner.format.qmax)
    if scheme.minimum:
        tops = [(float(high - a), float(high - b)) for a in range(4) for b in range(4) if high - max(a, b) > 0]
        return grid, high, np.asarray(tops, np.float32), method.sweeps
    return *grid, low, high, np.asarray([low, high, low + 1, high - 1, low + 2, high - 2], np.float32), method.sweeps


@lru_cache
def _starts(scheme: Scheme, *, weighted: bool) -> Any:
    """Return the levels that the largest magnitude of a group is mapped to; beside minima shares cut off, (n, 2).

    As many as lower the error by more than a hundredth in all, fewer where errors count alike.
    """
    levels, bits = scheme.format.levels, scheme.format.bits
    if scheme.minimum:
        # With nothing cut off a weight that lies on the grid already is found again.
        plain = (0.0, 0.6) if scheme.scale_scheme is None else (0.0, 0.25, 0.6, 1.0, 1.5)
        steps = np.asarray((-0.15, 0.0, 0.25, 0.5, 0.8, 1.2, 1.7) if weighted else plain) / (len(levels) - 1)
        return np.asarray([(low, high) for low in steps for high in steps], np.float32)
    few_levels = bits <= 3 or isinstance(scheme.format, Codebook)
    farthest = min(max(0.8, 0.24 * levels[-1]), 2.8)
    shifts = np.linspace(-0.5, farthest, 3 if few_levels else {4: 5, 5: 7, 6: 10}.get(bits, 5))
    return np.concatenate([levels[0] - shifts, levels[-1] + shifts]).astype(np.float32)
