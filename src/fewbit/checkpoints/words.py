"""Dense n-bit codes in little-endian int32 words, low bits first, along the last axis: GPTQ and AWQ store these.

Code j of a row occupies bits [j * bits, (j + 1) * bits) of the row's stream; at 3 bits, 32 codes fill 3 words.
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


def to_words(patterns: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Return unsigned codes (rows, n) as int32 (rows, n * bits / 32); they must fill whole words."""
    return np.ascontiguousarray(pack(patterns, bits)).view("<i4")


def from_words(words: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Return the uint8 codes (rows, words * 32 / bits) that `to_words` put into int32 `words`."""
    return np.asarray(unpack(np.ascontiguousarray(words).view(np.uint8), bits, words.shape[-1] * 32 // bits))
