"""The 16-bit floats that PyTorch casts to by itself, much faster than arithmetic would; and their bits.

A compiler may leave out a cast there and back, so where one looks on, and in other frameworks, arithmetic gives the
same bits.
"""

from __future__ import annotations

from typing import Any, Literal

from fewbit.numerics.namespace import Array, compiling, is_torch

#: The types by the word that frameworks have for them.
Type = Literal["float16", "bfloat16"]


def known(values: Array) -> bool:
    """Whether the functions below take `values`."""
    return is_torch(values) and not compiling(values)


def cast(values: Array, dtype: Type, largest: float) -> Array:
    """Return `values` as `dtype`, to nearest, ties to even; what is beyond `largest` saturates."""
    return values.to(_type(dtype)).clamp_(-largest, largest)


def patterns(numbers: Array) -> Array:
    """Return the bits of 16-bit floats as uint16; shares memory."""
    import torch

    return numbers.view(torch.uint16)


def numbers(patterns: Array, dtype: Type) -> Array:
    """Undo `patterns`; shares memory."""
    return patterns.view(_type(dtype))


def _type(dtype: Type) -> Any:
    import torch

    return getattr(torch, dtype)
