"""Affine quantization of float32 values.

codes = clip(round(x * (1 / scale)) + zero_point, qmin, qmax) and decode = (codes - zero_point) * scale.
Multiplying by the reciprocal, and adding the zero point after rounding, is what makes NumPy, PyTorch and XLA agree
bit for bit: XLA rewrites divisions and fuses a product with a following sum (DESIGN section 4).
"""

from __future__ import annotations

from fewbit.numerics.namespace import SMALLEST_NORMAL, Array, array_namespace, settled
from fewbit.numerics.rounding import to_whole


def symmetric_scale(amax: Array, reach: float) -> Array:
    """Return `amax * float32(1 / reach)`, and 1 where `amax` is 0; `reach` is the value that `amax` maps to."""
    xp = array_namespace(amax)
    scale = amax * _float32(1.0 / reach)
    return xp.where(scale < SMALLEST_NORMAL, xp.ones_like(scale), scale)


def asymmetric_scale(low: Array, high: Array, steps: int) -> Array:
    """Return `(high - low) * float32(1 / steps)` with `low <= 0 <= high`, and 1 where the range is empty."""
    return symmetric_scale(high - low, float(steps))


def zero_point(low: Array, scale: Array, qmin: int, qmax: int) -> Array:
    """Return the code, as a float, that stands for 0 when `low` maps to `qmin` (`low <= 0`)."""
    xp = array_namespace(low)
    return xp.clip(xp.round(-low * (1.0 / scale)) + qmin, qmin, qmax)


def float_zero_point(low: Array, scale: Array, qmin: int, qmax: int) -> Array:
    """Return the place of 0 among the codes, not rounded, at most one range beyond the codes themselves."""
    xp = array_namespace(low)
    return xp.clip(settled(-low * (1.0 / scale)) + qmin, 2 * qmin - qmax, 2 * qmax - qmin)


def encode(values: Array, scale: Array, zero: Array, limits: tuple[int, int], noise: Array | None = None) -> Array:
    """Return float-valued codes `clip(round(values * (1 / scale)) + zero, *limits)`; ties to even."""
    xp = array_namespace(values)
    whole = to_whole(values * (1.0 / scale), noise)
    return xp.clip(whole + xp.astype(zero, xp.float32, copy=False), *limits)


def encode_around_float_zero(
    values: Array, scale: Array, zero: Array, limits: tuple[int, int], noise: Array | None = None
) -> Array:
    """Return float-valued codes `clip(round(values * (1 / scale) + zero), *limits)` for a zero point between codes."""
    xp = array_namespace(values)
    return xp.clip(to_whole(settled(values * (1.0 / scale)) + zero, noise), *limits)


def _float32(value: float) -> float:
    import numpy as np

    return float(np.float32(value))
