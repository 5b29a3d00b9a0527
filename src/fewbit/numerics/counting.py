"""How often each whole number occurs: what array libraries call bincount, of a length that is known before."""

from __future__ import annotations

import numpy as np

from fewbit.numerics.namespace import Array, array_namespace, device, is_jax, is_torch


def occurrences(numbers: Array, length: int) -> Array:
    """Return how often each of 0, ..., `length` - 1 is among int32 `numbers` (n,), as int32 (length,)."""
    xp = array_namespace(numbers)
    if is_torch(numbers):
        return xp.astype(numbers.bincount(minlength=length), xp.int32)
    if is_jax(numbers):
        return xp.astype(xp.bincount(numbers, length=length), xp.int32)
    if isinstance(numbers, np.ndarray):
        return np.bincount(numbers, minlength=length).astype(np.int32)
    # The array API has no word for it: where each number would begin among all of them, sorted.
    every = xp.arange(length + 1, dtype=xp.int32, device=device(numbers))
    begins = xp.searchsorted(xp.sort(numbers, stable=False), every)
    return xp.astype(begins[1:] - begins[:-1], xp.int32)
