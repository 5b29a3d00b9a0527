"""Rows of a quantized embedding: the packed codes of the rows are picked, then these alone are dequantized."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fewbit.frontends.jax.equation import bind
from fewbit.frontends.jax.packed_weight import PackedWeight, rebuilt
from fewbit.frontends.jax.product import Product
from fewbit.frontends.jax.weight import Weight
from fewbit.numerics.namespace import Array


def gathered(equation: Any, product: Product, operands: list[Any], weight: Weight) -> Array:
    """Return what `equation`, a gather of whole rows, picks from an embedding."""
    packed = weight.held
    numbers, axes = equation.params["dimension_numbers"], equation.outvars[0].aval.ndim
    last = tuple(range(axes - len(numbers.offset_dims), axes))
    plain = product.contracted == (1,) and tuple(numbers.offset_dims) == last
    plain &= product.layout == weight.about.layout
    if not isinstance(packed, PackedWeight) or not plain or packed.stack or not _by_row(packed):
        return bind(equation, [weight.values(), *operands[1:]])[0]
    rows, width = packed.about.layout.matrix
    shape = equation.outvars[0].aval.shape[:-1]

    def picked(own: Array) -> Array:
        if own.shape[0] != rows:
            return own
        found = jax.lax.gather(
            own, operands[1], numbers, (1, own.shape[1]),
            mode=jax.lax.GatherScatterMode.CLIP,
        )  # fmt: skip
        return found.reshape((-1, own.shape[1]))

    arrays = {key: picked(own) for key, own in packed.arrays.items() if not key.startswith("input_")}
    count = arrays["codes"].shape[0]
    values = rebuilt(arrays, "", packed.about.scheme, (count, width)).dequantize().reshape((*shape, width))
    found = weight.cast(values)
    if equation.params["mode"] != jax.lax.GatherScatterMode.FILL_OR_DROP:
        return found
    # What lies outside of the table is filled as the float gather fills it.
    inside = bind(equation, [jnp.ones((rows, width), jnp.int8).astype(weight.dtype), *operands[1:]])[0]
    return jnp.where(inside == 1, found, inside)


def _by_row(packed: PackedWeight) -> bool:
    """Return whether every array has a row for each row of the table, or one number for all."""
    rows = packed.about.layout.matrix[0]
    return rows > 1 and all(own.shape[0] == rows or own.size == 1 for own in packed.arrays.values() if own.ndim == 2)
