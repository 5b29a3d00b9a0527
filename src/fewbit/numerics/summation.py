"""Sums that are the same to the bit in every framework: halves are added elementwise until one number is left.

Library sums group their terms as their vector units like; searches that compare sums would then choose differently.
"""

from __future__ import annotations

from math import prod

from fewbit.numerics.namespace import Array, array_namespace, settled


def tree_sum(values: Array, axes: tuple[int, ...]) -> Array:
    """Return the sum of `values` over `axes`, kept as 1."""
    xp = array_namespace(values)
    values = settled(values)  # most often they are products
    outer = tuple(axis for axis in range(values.ndim) if axis not in axes)
    kept = tuple(1 if axis in axes else size for axis, size in enumerate(values.shape))
    rest = xp.permute_dims(values, (*axes, *outer))
    rest = xp.reshape(rest, (prod([values.shape[axis] for axis in axes]), *(values.shape[axis] for axis in outer)))
    while rest.shape[0] > 1:
        half = rest.shape[0] // 2
        summed = rest[:half, ...] + rest[half : 2 * half, ...]
        rest = summed if rest.shape[0] == 2 * half else xp.concat([summed, rest[2 * half :, ...]], axis=0)
    return xp.reshape(rest, kept)
