"""Trees of quantized parameters as the floats that they stand for."""

from __future__ import annotations

from typing import Any

import jax

from fewbit.frontends.jax.packed_weight import PackedWeight, is_packed
from fewbit.frontends.jax.weight import Weight


def dequantize(parameters: Any) -> Any:
    """Return quantized parameters as the float parameters that they stand for, of the shapes and types they had."""
    return jax.tree.map(lambda own: _floats(own) if is_packed(own) else own, parameters, is_leaf=is_packed)


@jax.jit
def _floats(packed: PackedWeight) -> Any:
    return Weight.of(packed).values()
