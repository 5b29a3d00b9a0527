"""A weight that waits for its input, so that matrices are dequantized one by one, each where it is multiplied with.

XLA's CPU scheduler begins early what hangs on no input: all matrices of a model, which then lie in memory as floats.
Its barriers are gone by then. A sum with bits of the input that are always 0 is not.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from fewbit.frontends.jax.packed_weight import PackedWeight
from fewbit.frontends.jax.weight import Weight
from fewbit.numerics.namespace import Array

#: A count of the bits of a float32 has no more bits than this.
_COUNT_BITS = 6


def after_input(weight: Weight, given: Array) -> Weight:
    """Return `weight`, whose codes hang on `given` where it is computed on one CPU; the numbers are the same."""
    packed = weight.held
    # Of an input on several devices it would be one device's number.
    if not isinstance(packed, PackedWeight) or not given.size or jax.device_count() > 1:
        return weight
    codes, first = packed.arrays["codes"], jax.lax.stop_gradient(given).reshape(-1)[0]
    later = jax.lax.platform_dependent(codes, first, cpu=_plus_nothing, default=_as_they_are)
    return replace(weight, held=PackedWeight({**packed.arrays, "codes": later}, packed.about))


def _plus_nothing(codes: Array, number: Array) -> Array:
    bits = jax.lax.bitcast_convert_type(number.astype(jnp.float32), jnp.uint32)
    return codes + (jax.lax.population_count(bits) >> _COUNT_BITS).astype(codes.dtype)


def _as_they_are(codes: Array, number: Array) -> Array:  # noqa: ARG001
    return codes
