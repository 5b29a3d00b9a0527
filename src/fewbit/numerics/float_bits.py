"""The exponents of float32 numbers, and powers of two from exponents, by their bits: no logarithm, no table.

bits = sign << 31 | (e + 127) << 23 | mantissa; e = -127 stands for 0 and subnormals. Source: IEEE 754-2019 section 3.4.
"""

from __future__ import annotations

import numpy as np

from fewbit.numerics.namespace import Array, array_namespace, device, is_jax, is_torch, to_numpy

#: The exponents of normal float32.
LEAST, MOST = -126, 127


def exponents(values: Array) -> Array:
    """Return floor(log2 |x|) of float32 `values` as int32; -127 for 0 and subnormals, 128 for infinity and NaN."""
    fields = array_namespace(values).bitwise_right_shift(_bits(values), 23)
    return (fields & 255) - 127


def times_power(values: Array, exponent: Array, reach: tuple[int, int]) -> Array:
    """Return `values * 2^exponent` for int32 exponents inside `reach`, exact where the product is a normal number."""
    if reach[0] >= LEAST and reach[1] <= MOST:
        return values * _power(exponent)
    # One factor would overflow or be flushed; halves are between what goes in and what comes out.
    half = array_namespace(exponent).bitwise_right_shift(exponent, 1)
    return values * _power(half) * _power(exponent - half)


def _power(exponent: Array) -> Array:
    """Return float32 2^exponent, for exponents of normal numbers."""
    return _floats(array_namespace(exponent).bitwise_left_shift(exponent + 127, 23))


def _bits(values: Array) -> Array:
    return _seen_as(values, "int32")


def _floats(bits: Array) -> Array:
    return _seen_as(bits, "float32")


def _seen_as(values: Array, dtype: str) -> Array:
    """Return the same bytes as numbers of another 32-bit type; the array API has no word for it."""
    if is_torch(values):
        import torch

        return values.view(getattr(torch, dtype))
    if is_jax(values):
        import jax

        return jax.lax.bitcast_convert_type(values, np.dtype(dtype))
    xp = array_namespace(values)
    return xp.asarray(to_numpy(values).view(dtype), device=device(values))
