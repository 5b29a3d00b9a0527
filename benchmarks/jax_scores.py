"""Attention on projections that are known: softmax(Q K^T / sqrt(d)) V, for heads that may share keys and values."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def attended(queries: Any, keys: Any, values: Any, mask: Any, heads: int) -> Any:
    """Return (..., length, width) from projections of that shape; keys may be of fewer heads. `mask` is true: seen."""
    size = queries.shape[-1] // heads
    return joined(weighted(apart(queries, size), apart(keys, size), apart(values, size), mask))


def apart(x: Any, size: int) -> Any:
    """Return (..., length, heads x size) as (..., heads, length, size)."""
    return jnp.swapaxes(x.reshape((*x.shape[:-1], -1, size)), -3, -2)


def joined(x: Any) -> Any:
    """Undo `apart`."""
    x = jnp.swapaxes(x, -3, -2)
    return x.reshape((*x.shape[:-2], -1))


def weighted(queries: Any, keys: Any, values: Any, mask: Any) -> Any:
    """Return attention of (..., heads, length, size)."""
    share = queries.shape[-3] // keys.shape[-3]
    keys, values = (jnp.repeat(own, share, axis=-3) for own in (keys, values))
    scores = jnp.einsum("...qd,...kd->...qk", queries, keys) * queries.shape[-1] ** -0.5
    scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jnp.einsum("...qk,...kd->...qd", jax.nn.softmax(scores, axis=-1), values)


def rotated(x: Any, base: float) -> Any:
    """Return (..., length, size) with each pair (i, i + size / 2) turned by its place times base^(-2 i / size)."""
    length, size = x.shape[-2:]
    rates = base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angles = jnp.tile(jnp.arange(length, dtype=jnp.float32)[:, None] * rates, 2)
    turned = jnp.concatenate([-x[..., size // 2 :], x[..., : size // 2]], axis=-1)
    return x * jnp.cos(angles) + turned * jnp.sin(angles)
