"""Rounding to float16 in compiled code, which has no such type."""

from __future__ import annotations

from math import frexp
from typing import Any

import numba
import numpy as np

#: Of the least normal number, in the counting of `frexp`; and bits of a significand.
_LEAST_BINADE, _BITS = -13, 11


@numba.njit(cache=True)  # type: ignore[untyped-decorator]
def half(value: Any) -> Any:
    """Return the nearest float16 to `value` as a float32, ties to even; its subnormals are kept, beyond it is beyond.

    >>> float(half(np.float32(1.0 / 3.0))) == float(np.float16(1.0 / 3.0))
    True
    """
    if value == 0.0:
        return np.float32(0.0)
    step = 2.0 ** (max(frexp(np.float64(value))[1], _LEAST_BINADE) - _BITS)
    return np.float32(np.rint(np.float64(value) / step) * step)
