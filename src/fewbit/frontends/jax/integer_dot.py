"""Products of 8-bit codes summed in int32, and the sums of the weight's rows, by what the platform has a kernel for.

On CPUs sums are products with ones: XLA has an integer kernel for products of two rows or more, and slow loops for one
row and for sums. The numbers are the same, to the bit.
"""

from __future__ import annotations

from math import prod

import jax
import jax.numpy as jnp

from fewbit.numerics.namespace import Array

#: Rows up to which a row of ones joins them: reading the weight is what takes the time. Beyond, ones go alone.
_FEW = 64


def integer_dot(codes: Array, weight: Array) -> Array:
    """Return int32 (tokens..., out) for int8 (tokens..., columns) and (out, columns)."""
    rows, shape = _flat(codes)
    found: Array = jax.lax.platform_dependent(rows, weight, cpu=_beside_a_row, default=_product)
    return found.reshape((*shape, weight.shape[0]))


def integer_dot_and_sums(codes: Array, weight: Array) -> tuple[Array, Array]:
    """Return the same, and the sums of the rows of `weight`, int32 (out,)."""
    rows, shape = _flat(codes)
    found, sums = jax.lax.platform_dependent(rows, weight, cpu=_beside_ones, default=_product_and_sums)
    return found.reshape((*shape, weight.shape[0])), sums


def _flat(codes: Array) -> tuple[Array, tuple[int, ...]]:
    *tokens, columns = codes.shape
    return codes.reshape((prod(tokens), columns)), tuple(tokens)


def _product(rows: Array, weight: Array) -> Array:
    return jax.lax.dot_general(rows, weight, (((1,), (1,)), ((), ())), preferred_element_type=jnp.int32)


def _product_and_sums(rows: Array, weight: Array) -> tuple[Array, Array]:
    return _product(rows, weight), jnp.sum(weight, axis=1, dtype=jnp.int32)


def _beside_a_row(rows: Array, weight: Array) -> Array:
    return _product(rows, weight) if len(rows) != 1 else _beside_ones(rows, weight)[0]


def _beside_ones(rows: Array, weight: Array) -> tuple[Array, Array]:
    if len(rows) > _FEW:
        return _product(rows, weight), _product(_ones(2, rows), weight)[0]
    found = _product(jnp.concatenate([rows, _ones(1 if len(rows) else 2, rows)]), weight)
    return found[: len(rows)], found[len(rows)]


def _ones(count: int, like: Array) -> Array:
    return jnp.ones((count, like.shape[1]), like.dtype)
