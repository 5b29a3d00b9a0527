"""Rounding to float16 in compiled code, which has no such type.

half(x) = rint(x / s) s with s = 2^(max(e, -14) - 10), e being the exponent of x. Source: IEEE 754-2019, binary16.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

#: The exponent field of the least normal number, as float32 has it; and bits of a mantissa.
_LEAST_FIELD, _BITS = np.int32(127 - 14), np.int32(10)
_PLACE, _FIELD = np.int32(23), np.int32(255)


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def half(value: Any) -> Any:
    """Return the nearest float16 to `value` as a float32, ties to even; its subnormals are kept, beyond it is beyond.

    >>> float(half(np.float32(1.0 / 3.0))) == float(np.float16(1.0 / 3.0))
    True
    """
    field = np.int32(max((np.float32(value).view(np.int32) >> _PLACE) & _FIELD, _LEAST_FIELD) - _BITS)
    # Powers of two by their bits: every product but for the rounding is exact, and loops are on vectors.
    step = np.int32(field << _PLACE).view(np.float32)
    inverse = np.int32((np.int32(254) - field) << _PLACE).view(np.float32)
    return np.rint(np.float32(value) * inverse) * step
