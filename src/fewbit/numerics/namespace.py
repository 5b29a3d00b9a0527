"""The array namespace of an array, and the few operations whose spelling differs between frameworks.

`array_namespace` is array-api-compat's; `Array` is any array of the standard (NumPy, PyTorch, JAX, strict).
"""

from __future__ import annotations

from typing import Any, TypeAlias

from array_api_compat import array_namespace, device, is_numpy_namespace

__all__ = ["SMALLEST_NORMAL", "Array", "array_namespace", "constants_like", "device", "to_float32", "to_numpy"]

Array: TypeAlias = Any

#: Smallest normal float32. Smaller magnitudes count as 0 everywhere: XLA on CPU flushes them.
SMALLEST_NORMAL = 2.0**-126


def to_float32(values: Array) -> Array:
    """Return `values` as float32, with magnitudes below 2^-126 replaced by 0."""
    xp = array_namespace(values)
    values = xp.astype(values, xp.float32, copy=False)
    return xp.where(xp.abs(values) < SMALLEST_NORMAL, xp.zeros_like(values), values)


def constants_like(values: list[float] | list[int], dtype: str, like: Array) -> Array:
    """Return a short constant table as an array of the framework and device that `like` has."""
    xp = array_namespace(like)
    return xp.asarray(values, dtype=getattr(xp, dtype), device=device(like))


def to_numpy(values: Array) -> Any:
    """Return `values` as a NumPy array; shares memory where the framework can."""
    import numpy as np

    if is_numpy_namespace(array_namespace(values)):
        return np.asarray(values)
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    return np.from_dlpack(values)
