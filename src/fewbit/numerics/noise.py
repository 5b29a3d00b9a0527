"""Uniform noise that depends on a seed and a position only: the same to the bit in every framework and in any slicing.

noise(i) = (hash(hash(i) xor seed) mod 2^24) / 2^24, with a 32-bit integer hash of two multiply-xorshift rounds
(C. Wellons, "Prospecting for hash functions", 2018: lowbias32).
"""

from __future__ import annotations

from math import prod

from fewbit.errors import SchemeError
from fewbit.numerics.namespace import Array, array_namespace, device


def uniform(shape: tuple[int, ...], seed: int, like: Array, start: int = 0) -> Array:
    """Return float32 numbers in [0, 1) for the positions `start`, `start` + 1, ... in the framework of `like`."""
    if start + prod(shape) >= 1 << 31:
        raise SchemeError(f"seeded noise has 2^31 positions; {start + prod(shape)} are asked for: cut the tensor")
    xp = array_namespace(like)
    position = xp.arange(start, start + prod(shape), dtype=xp.int32, device=device(like))
    bits = _hash(_hash(position) ^ _signed(seed * 0x9E3779B1 + 0x7F4A7C15))
    return xp.reshape(xp.astype(bits & 0xFFFFFF, xp.float32) * 2.0**-24, shape)


def _hash(numbers: Array) -> Array:
    """Return a permutation of int32 `numbers`; products wrap around in every framework."""
    numbers = numbers ^ _shifted(numbers, 16)
    numbers = numbers * _signed(0x7FEB352D)
    numbers = numbers ^ _shifted(numbers, 15)
    numbers = numbers * _signed(0x846CA68B)
    return numbers ^ _shifted(numbers, 16)


def _shifted(numbers: Array, by: int) -> Array:
    """Shift right and fill with zeros; `>>` alone repeats the sign."""
    return (numbers >> by) & ((1 << (32 - by)) - 1)


def _signed(number: int) -> int:
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number >= 1 << 31 else number
