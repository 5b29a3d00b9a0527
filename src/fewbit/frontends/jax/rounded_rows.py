"""Rows rounded as the scheme of a weight's input says; gradients pass straight through.

Dynamic ranges are those of the rows that come, static ones are stored beside the weight, for each matrix of a stack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from fewbit.frontends.jax.packed_weight import Description
from fewbit.numerics.namespace import Array
from fewbit.numerics.rounding import passed
from fewbit.schemes.granularity import PerToken


class Rounds(Protocol):
    """What knows how its input is rounded: a parameter, or what is left of its stack; a pytree."""

    @property
    def stack(self) -> tuple[int, ...]:
        """The axes that are left of the stack."""

    @property
    def about(self) -> Description:
        """What parameter it is."""

    def input_rounded(self, values: Array) -> Array:
        """Return rows (tokens..., columns) as float32 values of their codes, nothing being left of the stack."""

    def with_input(self, change: Callable[[Array], Array]) -> Rounds:
        """Return a copy with `change` applied to the numbers of a static input."""


def rounded_rows(values: Array, held: Rounds) -> Array:
    """Return rows (tokens..., columns) of one matrix as float32 values of their codes."""
    assert held.about.input is not None
    rounded = held.input_rounded(values)
    # What a static range cuts off has no gradient; that of a dynamic one cuts nothing off.
    return rounded if held.about.input.static else passed(values, rounded)


def rounded_stack(values: Array, held: Rounds) -> Array:
    """Return rows (stack..., tokens..., columns), each matrix with what it is multiplied with."""
    function: Any = rounded_rows
    for _ in held.stack:
        function = jax.vmap(function)
    found: Array = function(values, held)
    return found


def rounded_samples(values: Array, held: Rounds) -> Array:
    """Return what goes into a convolution, (samples, channels, positions...), as float32 values of its codes."""
    given, spatial = held.about.input, values.ndim - 2
    assert given is not None
    if isinstance(given.granularity, PerToken):
        return rounded_rows(values.reshape((values.shape[0], -1)), held).reshape(values.shape)

    def beside(own: Array) -> Array:
        return own.reshape((-1, *(1 for _ in range(spatial)))) if own.ndim else own

    return rounded_rows(values, held.with_input(beside))


def rounded_by_expert(values: Array, sizes: Array, held: Rounds) -> Array:
    """Return rows (tokens, columns) that lie expert after expert, `sizes` of each, as float32 values of their codes."""
    if held.about.input is None or not held.about.input.static:
        return rounded_rows(values, held)

    def beside(own: Array) -> Array:
        each = jnp.repeat(own, sizes, axis=0, total_repeat_length=values.shape[0])
        return each if each.ndim == 2 else each[:, None]

    return rounded_rows(values, held.with_input(beside))
