"""The array namespace of an array, and the few operations whose spelling differs between frameworks.

`array_namespace` is array-api-compat's but for torch, whose compiler warns of the caches in it; `Array` is any array of
the standard (NumPy, PyTorch, JAX, strict). torch and jax are imported only for an array that is theirs already.
"""

from __future__ import annotations

import sys
from typing import Any, TypeAlias

import array_api_compat

__all__ = [
    "SMALLEST_NORMAL",
    "Array",
    "array_namespace",
    "compiling",
    "constants_like",
    "device",
    "is_jax",
    "is_torch",
    "numbers_at_once",
    "settled",
    "stop_gradient",
    "to_float32",
    "to_numpy",
]

Array: TypeAlias = Any

#: Smallest normal float32. Smaller magnitudes count as 0 everywhere: XLA on CPU flushes them.
SMALLEST_NORMAL = 2.0**-126

#: Largest magnitude below it.
_LARGEST_SUBNORMAL = 2.0**-126 - 2.0**-149

#: Largest float32.
_LARGEST = (2.0 - 2.0**-23) * 2.0**127


def is_torch(values: Array) -> bool:
    """Return whether `values` is a torch tensor."""
    return "torch" in sys.modules and isinstance(values, sys.modules["torch"].Tensor)


def is_jax(values: Array) -> bool:
    """Return whether `values` is a JAX array or tracer."""
    return not is_torch(values) and bool(array_api_compat.is_jax_array(values))


def array_namespace(values: Array) -> Any:
    """Return the functions of the array API standard for the framework of `values`."""
    if is_torch(values):
        from array_api_compat import torch as namespace

        return namespace
    return array_api_compat.array_namespace(values)


def device(values: Array) -> Any:
    """Return the device that holds `values`."""
    return values.device if is_torch(values) else array_api_compat.device(values)


def to_float32(values: Array) -> Array:
    """Return `values` as float32, with magnitudes below 2^-126 replaced by 0."""
    xp = array_namespace(values)
    values = xp.astype(values, xp.float32, copy=False)
    if is_torch(values) and not compiling(values):
        import torch

        # The same number by number; torch's `where` is not vectorized on a CPU.
        return torch.nn.functional.hardshrink(values, _LARGEST_SUBNORMAL)
    return xp.where(xp.abs(values) < SMALLEST_NORMAL, xp.zeros_like(values), values)


def constants_like(values: list[float] | list[int], dtype: str, like: Array) -> Array:
    """Return a short constant table as an array of the framework and device that `like` has."""
    xp = array_namespace(like)
    return xp.asarray(values, dtype=getattr(xp, dtype), device=device(like))


def to_numpy(values: Array) -> Any:
    """Return `values` as a NumPy array; shares memory where the framework can."""
    import numpy as np

    if array_api_compat.is_numpy_array(values):
        return np.asarray(values)
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    return np.from_dlpack(values)


def stop_gradient(values: Array) -> Array:
    """Return `values` as a constant of differentiation."""
    if is_torch(values):
        return values.detach()
    if is_jax(values):
        import jax

        return jax.lax.stop_gradient(values)
    return values


def settled(products: Array) -> Array:
    """Return `products` unchanged, and rounded to float32 before what follows is added to them.

    XLA compiles a product and a following sum into one operation that rounds once; a clip between them forbids it.
    """
    if not is_jax(products):
        return products
    return array_namespace(products).clip(products, -_LARGEST, _LARGEST)


def compiling(values: Array) -> bool:
    """Return whether a compiler looks on, which makes one loop of many operations."""
    if is_torch(values):
        import torch

        return torch.compiler.is_compiling()
    return is_jax(values)


def numbers_at_once(values: Array) -> int:
    """Return how many numbers to work on at a time: what a cache holds, or without limit where a compiler looks on."""
    if compiling(values):
        return 1 << 62
    if is_torch(values):
        return 1 << (19 if values.device.type == "cpu" else 24)  # each operation waits for all threads
    return 1 << 17
