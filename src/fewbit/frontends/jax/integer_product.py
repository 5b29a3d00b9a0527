"""Products of 8-bit codes summed in int32, where each row of inputs and each row of the weight has one scale.

y = s_x s_w (sum q_x q_w - z_x sum q_w), the sums exact. Derivatives are those of the product of the values, straight
through the rounding.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fewbit.formats.integer import Int
from fewbit.frontends.jax.integer_dot import integer_dot, integer_dot_and_sums
from fewbit.frontends.jax.packed_weight import Description, PackedWeight
from fewbit.frontends.jax.rounded_rows import rounded_rows
from fewbit.numerics.namespace import Array, to_float32
from fewbit.qtensor import quantize
from fewbit.schemes.granularity import PerChannel, PerTensor, PerToken
from fewbit.schemes.scheme import Scheme

#: Columns up to which neither sum nor their difference leaves int32.
_WIDEST = 1 << 16


def multiplies_codes(about: Description) -> bool:
    """Return whether both sides are integers of at most 8 bits with one scale a row."""
    given, weight = about.input, about.scheme
    return (
        given is not None
        and _is_int8(given)
        and given.granularity in (PerToken(), PerTensor())
        and _is_int8(weight)
        and weight.symmetric
        and weight.granularity in (PerChannel(), PerTensor())
        and about.layout.matrix[1] <= _WIDEST
    )


def _is_int8(scheme: Scheme) -> bool:
    own = scheme.format
    plain = scheme.scale_scheme is None and not scheme.float_zero and not scheme.minimum
    return plain and isinstance(own, Int) and own.signed and own.bits <= 8


@jax.custom_jvp
def integer_rows(values: Array, packed: PackedWeight) -> Array:
    """Return float32 (tokens..., out) for rows (tokens..., columns) and a matrix."""
    codes, scale, zero = _codes(values, packed)
    weight = packed.qtensor()
    if zero is None:
        total = integer_dot(codes, weight.codes)
    else:
        total, sums = integer_dot_and_sums(codes, weight.codes)
        total = total - zero.astype(jnp.int32) * sums
    return total.astype(jnp.float32) * (scale * weight.scale_values().reshape(-1))


@integer_rows.defjvp
def _derivative(primals: Any, tangents: Any) -> tuple[Array, Array]:
    values, packed = primals
    _, change = jax.jvp(lambda own: rounded_rows(own, packed), (values,), (tangents[0],))
    return integer_rows(values, packed), change @ packed.qtensor().dequantize().T


def integer_stack(values: Array, packed: PackedWeight) -> Array:
    """Return float32 (stack..., tokens..., out)."""
    function: Any = integer_rows
    for _ in packed.stack:
        function = jax.vmap(function)
    found: Array = function(values, packed)
    return found


def _codes(values: Array, packed: PackedWeight) -> tuple[Array, Array, Array | None]:
    """Return the codes of rows, and their scales and zero points, which broadcast to (tokens..., 1)."""
    activation = packed.activation()
    if activation.scale is None:
        found = quantize(values, activation.scheme)
        return found.codes, found.scale_values(), found.zero_point
    scale, zero = activation.scale, activation.zero_point
    return activation.scheme.grid.codes(to_float32(values), scale, zero), scale, zero
