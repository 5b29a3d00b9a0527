"""A product of JAX with one matrix, and its input rounded by NumPy."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fewbit as fb
from fewbit.activation import Activation
from fewbit.schemes.notation import parse_input_scheme

W8A8 = [fb.Rule(".*", weight="int8", input="int8")]


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Return normal numbers, the same each time."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X = normal(6, 32, seed=9)
W = {"w": normal(32, 16)}


def matmul(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Return rows times the matrix."""
    return x @ p["w"]


def rounded(values: jax.Array, text: str) -> Any:
    """Return rows with dynamic ranges, as NumPy has them."""
    return Activation(scheme=parse_input_scheme(text).stored_as("float32")).rounded(np.asarray(values))
