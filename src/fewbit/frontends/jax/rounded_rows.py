"""Rows rounded as the scheme of a weight's input says; gradients pass straight through.

Dynamic ranges are those of the rows that come, static ones are stored beside the weight, for each matrix of a stack.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from fewbit.activation import Activation
from fewbit.frontends.jax.packed_weight import PackedWeight
from fewbit.numerics.namespace import Array
from fewbit.numerics.rounding import passed
from fewbit.schemes.granularity import PerToken


class Rounds(Protocol):
    """What knows how its input is rounded: a parameter, or what is left of its stack; a pytree."""

    @property
    def stack(self) -> tuple[int, ...]:
        """The axes that are left of the stack."""

    def activation(self) -> Activation:
        """Return how the input of a matrix is rounded, nothing being left of the stack."""


def rounded_rows(values: Array, packed: Rounds) -> Array:
    """Return rows (tokens..., columns) of one matrix as float32 values of their codes."""
    activation = packed.activation()
    rounded = activation.rounded(values)
    # What a static range cuts off has no gradient; that of a dynamic one cuts nothing off.
    return passed(values, rounded) if activation.scale is None else rounded


def rounded_stack(values: Array, packed: Rounds) -> Array:
    """Return rows (stack..., tokens..., columns), each matrix with what it is multiplied with."""
    function: Any = rounded_rows
    for _ in packed.stack:
        function = jax.vmap(function)
    found: Array = function(values, packed)
    return found


def rounded_samples(values: Array, packed: Rounds) -> Array:
    """Return what goes into a convolution, (samples, channels, positions...), as float32 values of its codes."""
    activation, spatial = packed.activation(), values.ndim - 2
    if isinstance(activation.scheme.granularity, PerToken):
        return rounded_rows(values.reshape((values.shape[0], -1)), packed).reshape(values.shape)
    if not isinstance(packed, PackedWeight) or activation.scale is None:
        return rounded_rows(values, packed)

    def beside(own: Array) -> Array:
        return own.reshape((-1, *(1 for _ in range(spatial)))) if own.ndim else own

    numbers = {key: beside(own) if key.startswith("input_") else own for key, own in packed.arrays.items()}
    return rounded_rows(values, PackedWeight(numbers, packed.about))


def rounded_by_expert(values: Array, sizes: Array, packed: Rounds) -> Array:
    """Return rows (tokens, columns) that lie expert after expert, `sizes` of each, as float32 values of their codes."""
    if not isinstance(packed, PackedWeight) or not packed.about.input or not packed.about.input.static:
        return rounded_rows(values, packed)

    def beside(own: Array) -> Array:
        each = jnp.repeat(own, sizes, axis=0, total_repeat_length=values.shape[0])
        return each if each.ndim == 2 else each[:, None]

    numbers = {key: beside(own) if key.startswith("input_") else own for key, own in packed.arrays.items()}
    return rounded_rows(values, PackedWeight(numbers, packed.about))
