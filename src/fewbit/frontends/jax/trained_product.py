"""Products with weights in training: values by values, or forwards codes by codes where both sides have 8 bits.

Backwards both are the product of the values that the codes stand for, through the gradient of the training.
"""

from __future__ import annotations

from typing import Any

import jax

from fewbit.frontends.jax.integer_product import integer_rows, multiplies_codes
from fewbit.frontends.jax.product import Product
from fewbit.frontends.jax.rewriting import arranged, multiply
from fewbit.frontends.jax.rounded_rows import rounded_rows
from fewbit.frontends.jax.rows import rows_of
from fewbit.frontends.jax.trained_weight import TrainedWeight
from fewbit.frontends.jax.weight import Weight
from fewbit.numerics.namespace import Array


def multiply_codes(equation: Any, product: Product, operands: list[Any], weight: Weight) -> Array:
    """Return what a product gives, computed from codes where the quantized function will."""
    held, about = weight.held, weight.about
    plain = equation.primitive.name == "dot_general" and product.layout == about.layout
    if not plain or not isinstance(held, TrainedWeight) or not multiplies_codes(about):
        return multiply(equation, product, operands, weight)
    function: Any = _by_codes
    for _ in held.stack:
        function = jax.vmap(function)
    rows = rows_of(equation, product, operands[1 - product.position])
    return arranged(function(rows.values, held), equation, product, weight)


@jax.custom_vjp
def _by_codes(values: Array, held: TrainedWeight) -> Array:
    """Return float32 (tokens..., out) for rows (tokens..., columns) and a matrix."""
    return integer_rows(values, held.packed())


def _by_values(values: Array, held: TrainedWeight) -> Array:
    return rounded_rows(values, held) @ held.rounded().T


def _forwards(values: Array, held: TrainedWeight) -> tuple[Array, Any]:
    return _by_codes(values, held), (values, held)


def _backwards(kept: Any, gradient: Array) -> tuple[Array, TrainedWeight]:
    found: tuple[Array, TrainedWeight] = jax.vjp(_by_values, *kept)[1](gradient)
    return found


_by_codes.defvjp(_forwards, _backwards)
