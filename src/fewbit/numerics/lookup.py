"""Read a short table at many indices, in the framework and on the device of the indices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fewbit.numerics.buckets import buckets_for
from fewbit.numerics.namespace import Array, array_namespace, compiling, constants_like, is_torch

#: Up to so many thresholds are compared with one by one, fewer by eager torch, which is slow at it.
_FEW, _FEW_IN_TORCH = 32, 8


def look_up(table: Sequence[float], index: Array) -> Array:
    """Return the float32 `table[index]`, in the shape of `index`."""
    xp = array_namespace(index)
    values = constants_like(list(table), "float32", index)
    flat = xp.take(values, xp.reshape(xp.astype(index, xp.int32), (-1,)), axis=0)
    return xp.reshape(flat, index.shape)


def rank(thresholds: Sequence[float], values: Array) -> Array:
    """Return how many of the ascending `thresholds` are at or below each of `values`, as int32."""
    xp = array_namespace(values)
    few = len(thresholds) <= _FEW
    faster_by_table = not few or (is_torch(values) and len(thresholds) > _FEW_IN_TORCH)
    buckets = buckets_for(tuple(thresholds), values) if faster_by_table else None
    if buckets is not None:
        return buckets.rank(values)
    if few:
        # Comparisons run on vector units and fuse; a binary search does neither.
        kind = xp.int32 if compiling(values) else xp.uint8
        count = xp.zeros_like(values, dtype=kind)
        for threshold in thresholds:
            above = values >= threshold
            count += above.view(kind) if isinstance(above, np.ndarray) else xp.astype(above, kind)
        return xp.astype(count, xp.int32)
    table = constants_like(list(thresholds), "float32", values)
    flat = xp.searchsorted(table, xp.reshape(values, (-1,)), side="right")
    return xp.astype(xp.reshape(flat, values.shape), xp.int32)


def rank_between(levels: Sequence[float], values: Array, noise: Array) -> Array:
    """Return the index of one of the two levels around each of `values`, right on average; the ends saturate."""
    below = array_namespace(values).clip(rank(levels, values) - 1, 0, len(levels) - 2)
    lower = look_up(levels[:-1], below)
    gap = look_up(levels[1:], below) - lower
    return below + array_namespace(values).astype(noise * gap < values - lower, below.dtype)
