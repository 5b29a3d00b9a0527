"""JAX arrays as they are, with another gradient; see `fewbit.numerics.gradient`.

A share is linear and said forwards, so that both modes have it; what depends on the gradient itself is said backwards.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from fewbit.numerics.namespace import Array


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def slowed(values: Array, factor: float) -> Array:  # noqa: ARG001  # the derivative takes it
    """Return `values`."""
    return values


@slowed.defjvp
def _slowed(factor: float, primals: Any, tangents: Any) -> tuple[Array, Array]:
    return primals[0], tangents[0] * factor


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def shaped(values: Array, difference: Array, delta: float) -> Array:  # noqa: ARG001  # the gradient takes them
    """Return `values`."""
    return values


def _kept(values: Array, difference: Array, delta: float) -> tuple[Array, Array]:  # noqa: ARG001  # as JAX calls it
    return values, difference


def _shaped(delta: float, difference: Array, gradient: Array) -> tuple[Array, Array]:
    return gradient * (1.0 + delta * jnp.sign(gradient) * difference), jnp.zeros_like(difference)


shaped.defvjp(_kept, _shaped)
