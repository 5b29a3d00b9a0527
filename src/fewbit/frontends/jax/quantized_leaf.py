"""A leaf of the tree of parameters quantized: its matrices one after the other, or their shapes alone.

Numbers are quantized by NumPy, whose bits are those of every framework; a tracer by JAX itself; of an abstract leaf the
shapes and types that it would have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fewbit.activation import Activation
from fewbit.errors import NonFiniteError, SchemeError
from fewbit.frontends.jax.packed_weight import Description, PackedWeight, abstract, stored_shapes
from fewbit.frontends.jax.placement import placed, shardings
from fewbit.frontends.jax.view import to_matrices
from fewbit.numerics.namespace import Array
from fewbit.qtensor import QTensor
from fewbit.schemes.granularity import PerTensor

#: What a matrix (out, in) and its place in the stack become: codes, and how the input is rounded.
Solve = Callable[[Array, int], tuple[QTensor, Activation | None]]


def quantized_leaf(leaf: Any, about: Description, solve: Solve) -> PackedWeight:
    """Return a parameter quantized.

    Raises:
        NonFiniteError: it holds NaN or infinity.

    """
    if isinstance(leaf, jax.core.Tracer):
        if about.scheme.learned or about.scheme.span is not None:
            raise SchemeError(
                f"{about.name}: {about.scheme} is searched on the host, not under jit; quantize outside of it, or give "
                "shapes (jax.ShapeDtypeStruct) where these will do"
            )
        return _packed(to_matrices(leaf.astype("float32"), about.layout), about, solve)
    values = require_finite(leaf, about)
    packed = _packed(np.ascontiguousarray(to_matrices(values, about.layout)), about, solve)
    return placed(packed, leaf.sharding) if isinstance(leaf, jax.Array) else packed.map(jnp.asarray)


def require_finite(leaf: Any, about: Description) -> Array:
    """Return a parameter as float32 numbers of NumPy.

    Raises:
        NonFiniteError: it holds NaN or infinity.

    """
    values = np.asarray(leaf).astype(np.float32)
    if not np.isfinite(values).all():
        raise NonFiniteError(f"{about.name} holds NaN or infinity; repair it, or keep it")
    return values


def _packed(matrices: Array, about: Description, solve: Solve) -> PackedWeight:
    flat = matrices.reshape((-1, *matrices.shape[-2:]))
    found = [solve(flat[place], place) for place in range(flat.shape[0])]
    return PackedWeight.of([qtensor for qtensor, _ in found], about, [given for _, given in found])


def abstract_leaf(leaf: Any, about: Description, width: int) -> PackedWeight:
    """Return the shapes and types of a quantized parameter whose input has rows of `width` channels.

    Where the float one, shapes too, has a sharding, so do they.
    """
    found = stored_shapes(about.scheme, about.layout.matrix)
    given = about.input
    if given is not None and given.static:
        shape = () if given.granularity == PerTensor() or given.fixes_unit else (width,)
        names = ("scale",) if given.symmetric else ("scale", "zero_point")
        found |= {f"input_{name}": (shape, "float32") for name in names}
    stack = about.layout.shape[:-2]
    packed = PackedWeight({key: abstract((*stack, *shape), dtype) for key, (shape, dtype) in found.items()}, about)
    if leaf.sharding is None:
        return packed
    where = shardings(packed, leaf.sharding)
    arrays = {key: abstract(own.shape, own.dtype, where[key]) for key, own in packed.arrays.items()}
    return PackedWeight(arrays, about)
