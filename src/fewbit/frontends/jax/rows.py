"""What is multiplied with a weight as rows (stack..., tokens..., columns), in the order of the weight's columns.

Of a convolution as (samples, channels, positions...), as PyTorch has it: a token is a sample there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from fewbit.frontends.jax.product import Product
from fewbit.numerics.namespace import Array


@dataclass(frozen=True, slots=True)
class Rows:
    """An operand as rows, and the way back."""

    #: (stack..., tokens..., columns); of a convolution (samples, channels, positions...).
    values: Array
    #: Axes of the operand in the order of the rows, of which the last `columns` became one.
    order: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: Any

    @classmethod
    def of(cls, operand: Array, order: Sequence[int], columns: int) -> Rows:
        """Return an operand with its axes in this order, the last `columns` of them joined."""
        apart = jnp.transpose(operand, order)
        kept = apart.shape[: len(order) - columns]
        values = apart.reshape((*kept, -1)) if columns != 1 else apart
        return cls(values, tuple(order), tuple(apart.shape), operand.dtype)

    def back(self, values: Array) -> Array:
        """Return rows as the operand that they were."""
        inverse = [self.order.index(axis) for axis in range(len(self.order))]
        return jnp.transpose(values.reshape(self.shape), inverse).astype(self.dtype)


def rows_of(equation: Any, product: Product, operand: Array) -> Rows:
    """Return the other operand of a product as rows."""
    return _ROWS[equation.primitive.name](equation.params, product, operand)


def _dot_rows(numbers: Any, product: Product, operand: Array) -> Rows:
    contracted, batch = numbers
    own, other = product.position, 1 - product.position
    pairs = dict(zip(contracted[own], contracted[other], strict=True))
    columns = [pairs[axis] for axis in product.contracted]
    stack = list(batch[other])
    tokens = [axis for axis in range(operand.ndim) if axis not in (*columns, *stack)]
    return Rows.of(operand, (*stack, *tokens, *columns), len(columns))


def _ragged_rows(parameters: Any, product: Product, operand: Array) -> Rows:
    return _dot_rows(parameters["ragged_dot_dimension_numbers"].dot_dimension_numbers, product, operand)


def _convolved_rows(parameters: Any, product: Product, operand: Array) -> Rows:  # noqa: ARG001
    return Rows.of(operand, parameters["dimension_numbers"].lhs_spec, 1)


_ROWS: dict[str, Callable[[Any, Product, Array], Rows]] = {
    "dot_general": lambda parameters, product, operand: _dot_rows(parameters["dimension_numbers"], product, operand),
    "ragged_dot_general": _ragged_rows,
    "ragged_dot": _ragged_rows,
    "conv_general_dilated": _convolved_rows,
}


def patches(equation: Any, operand: Array) -> Array:
    """Return what a convolution multiplies its weight with, (positions, groups x columns), in float32."""
    parameters = equation.params
    numbers = parameters["dimension_numbers"]
    weight = equation.invars[1].aval.shape
    apart = jax.lax.conv_general_dilated_patches(
        jnp.transpose(operand, numbers.lhs_spec).astype(jnp.float32),
        filter_shape=[weight[axis] for axis in numbers.rhs_spec[2:]],
        window_strides=parameters["window_strides"],
        padding=parameters["padding"],
        lhs_dilation=parameters["lhs_dilation"],
        rhs_dilation=parameters["rhs_dilation"],
        precision=jax.lax.Precision.HIGHEST,
    )  # (samples, channels x kernel, positions...)
    return jnp.moveaxis(apart, 1, -1).reshape((-1, apart.shape[1]))
