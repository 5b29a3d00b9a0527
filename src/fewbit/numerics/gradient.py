"""Numbers as they are, with another gradient: a share of it, or one that grows with a distance; and clips that pass it.

y = x, dy = a dx; y = x, dx = dy (1 + delta sign(dy) d). Sources: LSQ, arXiv:1902.08153; EWGS, CVPR 2021, equation 6.
"""

from __future__ import annotations

from fewbit.numerics.namespace import Array, array_namespace, is_jax, is_torch


def slowed(values: Array, factor: float) -> Array:
    """Return `values`, whose gradient is `factor` times that of what is returned."""
    if is_torch(values):
        from fewbit.numerics.torch_gradient import Slowed

        return Slowed.apply(values, factor)  # type: ignore[no-untyped-call]
    if is_jax(values):
        from fewbit.numerics import jax_gradient

        return jax_gradient.slowed(values, factor)
    return values


def shaped(values: Array, difference: Array, delta: float) -> Array:
    """Return `values`, whose gradient g becomes g (1 + delta sign(g) difference)."""
    if is_torch(values):
        from fewbit.numerics.torch_gradient import Shaped

        return Shaped.apply(values, difference, delta)  # type: ignore[no-untyped-call]
    if is_jax(values):
        from fewbit.numerics import jax_gradient

        return jax_gradient.shaped(values, difference, delta)
    return values


def where_set(values: Array, mask: Array) -> Array:
    """Return few numbers spread over where a mask is set, 0 elsewhere."""
    if is_torch(values):
        from fewbit.numerics.torch_gradient import WhereSet

        return WhereSet.apply(values, mask)  # type: ignore[no-untyped-call]
    return values * array_namespace(values).astype(mask, values.dtype)


def at_least(values: Array, low: float) -> Array:
    """Return the larger of both; on the bound gradients pass, as by `torch.clamp`, where `jnp.clip` halves them."""
    xp = array_namespace(values)
    return xp.where(values < low, xp.zeros_like(values) + low, values)


def at_most(values: Array, high: float) -> Array:
    """Return the smaller of both, likewise."""
    xp = array_namespace(values)
    return xp.where(values > high, xp.zeros_like(values) + high, values)
