"""Ranks of float32 numbers among thresholds by their first 16 bits: a bucket of these holds one threshold at most.

rank(x) = least[bucket(x)] + (x >= threshold[bucket(x)]): two reads of a table and one comparison, of however many
thresholds. Where two of them share a bucket (they are less than 1/128 apart) there is no table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from fewbit.numerics.namespace import Array, compiling, is_torch

_BUCKETS = 1 << 16
_INFINITE = 0x7F800000


@dataclass(frozen=True, slots=True)
class Buckets:
    """What is known of each bucket, as arrays of one framework."""

    #: int32: the rank of its least number.
    least: Array
    #: float32: the threshold in it or above it; NaN where there is none.
    threshold: Array

    def rank(self, values: Array) -> Array:
        """Return how many thresholds are at or below each of the float32 `values`, as int32."""
        if is_torch(values):
            import torch

            bucket = (values.reshape(-1).view(torch.int32) >> 16) & (_BUCKETS - 1)
            above = values.reshape(-1) >= self.threshold.index_select(0, bucket)
            return self.least.index_select(0, bucket).add_(above).reshape(values.shape)
        place = (values.view(np.uint32) >> np.uint32(16)).astype(np.intp)
        rank = self.least.take(place)
        rank += values >= self.threshold.take(place)
        return rank


def buckets_for(thresholds: tuple[float, ...], values: Array) -> Buckets | None:
    """Return the table for `values`, or `None`: they are not float32 of NumPy or torch on the CPU, or hold NaN."""
    torch_here = is_torch(values)
    if not (torch_here or isinstance(values, np.ndarray)) or compiling(values):
        return None
    if str(values.dtype).removeprefix("torch.") != "float32" or not all(values.shape):
        return None
    if torch_here and values.device.type != "cpu":
        return None
    made, largest = _made(thresholds), values.max()
    # A NaN is below every threshold, and may share its bucket with infinity; it comes through a maximum.
    if made is None or bool(largest != largest):  # noqa: PLR0124
        return None
    return _for_torch(thresholds) if torch_here else made


@cache
def _made(thresholds: tuple[float, ...]) -> Buckets | None:
    first = np.arange(_BUCKETS, dtype=np.uint32) << np.uint32(16)
    ends = np.stack([first, first | np.uint32(0xFFFF)])
    # Of those that hold NaN, infinity is all that counts.
    magnitudes = np.minimum(ends & np.uint32(0x7FFFFFFF), np.uint32(_INFINITE))
    low, high = np.sort((magnitudes | (ends & np.uint32(0x80000000))).view(np.float32), axis=0)
    table = np.asarray(thresholds, np.float32)
    least, most = (np.searchsorted(table, end, side="right").astype(np.int32) for end in (low, high))
    if int((most - least).max()) > 1:
        return None
    return Buckets(least, np.append(table, np.float32(np.nan))[least])


@cache
def _for_torch(thresholds: tuple[float, ...]) -> Any:
    import torch

    made = _made(thresholds)
    assert made is not None  # `buckets_for` has asked
    return Buckets(torch.from_numpy(made.least), torch.from_numpy(made.threshold))
