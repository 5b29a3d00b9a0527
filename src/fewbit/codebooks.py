"""Tables of learned levels, one for each output row: learning them, codes, and values.

q = table[row, code] * scale; a table holds shares of the largest magnitude of a group. Levels are learned on the host,
so that every framework gets the same numbers; values are looked up where the codes are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fewbit.errors import MissingExtraError
from fewbit.formats.learned import Learned
from fewbit.formats.scale_type import ScaleType, round_scale, round_zero_point
from fewbit.numerics import affine
from fewbit.numerics.groups import spread
from fewbit.numerics.namespace import Array, array_namespace, device, to_float32, to_numpy

#: What a weight counts at least, as a share of the mean of its row: columns that no input reached have levels too.
_LEAST = 1e-6


def learned(
    weight: Array, form: Learned, box: tuple[int, ...], scale_type: ScaleType | None, importance: Array | None
) -> tuple[Array, Array, Array]:
    """Return codes (uint8), scales (out, groups) and tables (out, levels) of `weight` (out, in), where it is.

    Levels have the least squared error, weighted by `importance` (out, in), and are rounded to `scale_type`.

    Raises:
        MissingExtraError: numba is not installed.

    """
    try:
        from fewbit.numerics.kmeans import learned_levels
    except ImportError as error:
        raise MissingExtraError(f"learned levels need {error.name}; pip install 'fewbit[torch]'") from error
    values = np.asarray(to_numpy(to_float32(weight)))
    starts = np.arange(0, values.shape[1], box[1])
    largest = np.maximum.reduceat(np.abs(values), starts, axis=1)
    scale = round_scale(affine.symmetric_scale(largest, form.reach), scale_type)
    wide = spread(scale, values.shape, box)
    shares = values / wide
    counted = np.ones_like(values) if importance is None else np.asarray(to_numpy(importance))
    counted = np.broadcast_to(counted, values.shape).astype(np.float64) * wide.astype(np.float64) ** 2
    mean = counted.mean(axis=1, keepdims=True)
    tables = learned_levels(shares, counted + _LEAST * mean + (mean == 0), form.count)
    tables = np.sort(round_zero_point(tables, scale_type), axis=1)
    xp = array_namespace(weight)
    found = (nearest_codes(shares, tables), scale, tables)
    codes, scale, tables = (xp.asarray(part, device=device(weight)) for part in found)
    return codes, scale, tables


def nearest_codes(shares: Any, tables: Any) -> Any:
    """Return the uint8 index of the level nearest to each number (rows, n), the lower one of two alike."""
    middles = (tables[:, 1:].astype(np.float64) + tables[:, :-1]) / 2
    codes = np.zeros(shares.shape, np.uint8)
    for place in range(middles.shape[1]):
        codes += shares > middles[:, place : place + 1]
    # Of levels that repeat, the first.
    first = np.argmax(tables[:, None, :] == tables[:, :, None], axis=2).astype(np.uint8)
    return np.take_along_axis(first, codes.astype(np.int64), axis=1)


def entries(codes: Array, tables: Array) -> Array:
    """Return `tables[row, code]` of codes (rows, n), float32."""
    xp = array_namespace(codes)
    rows = xp.arange(codes.shape[0], dtype=xp.int32, device=device(codes)) * tables.shape[1]
    places = xp.astype(codes, xp.int32) + rows[:, None]
    return xp.reshape(xp.take(xp.reshape(tables, (-1,)), xp.reshape(places, (-1,)), axis=0), codes.shape)


def table_shape(shape: tuple[int, ...], form: Learned) -> tuple[int, int]:
    """Return the shape of the tables of a tensor of `shape`."""
    return shape[0], form.count
