"""Dense n-bit codes in little-endian int32 words, low bits first, along the last axis.

Code j of a row occupies bits [j * bits, (j + 1) * bits) of the row's stream; at 3 bits, 32 codes fill 3 words.
GPTQ, AWQ and compressed-tensors store these; what is left of a last word is 0.
"""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np

from fewbit.numerics.packing import pack, unpack


def codes_of_whole_words(bits: int) -> int:
    """Return the least number of codes that fill whole words.

    >>> codes_of_whole_words(4), codes_of_whole_words(3)
    (8, 32)
    """
    return 32 // gcd(32, bits)


def word_count(length: int, bits: int) -> int:
    """Return how many words a row of `length` codes takes.

    >>> word_count(9, 4)
    2
    """
    return -(-length * bits // 32)


def to_words(patterns: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Return unsigned codes (rows, n) as int32 (rows, ceil(n * bits / 32))."""
    packed = np.ascontiguousarray(pack(patterns, bits))
    if missing := -packed.shape[1] % 4:
        packed = np.pad(packed, ((0, 0), (0, missing)))
    return packed.view("<i4")


def from_words(words: np.ndarray[Any, Any], bits: int, length: int | None = None) -> np.ndarray[Any, Any]:
    """Return the first `length` uint8 codes of each row that `to_words` put into int32 `words`, or all that fit."""
    count = words.shape[-1] * 32 // bits if length is None else length
    return np.asarray(unpack(np.ascontiguousarray(words).view(np.uint8), bits, count))
