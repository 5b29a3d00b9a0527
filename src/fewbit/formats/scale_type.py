"""The types in which a scale can be stored, and rounding to them.

A scale is rounded to its type before codes are computed with it, so that a file holds exactly what was used.
"""

from __future__ import annotations

from typing import Literal

from fewbit.formats.minifloat import BFLOAT16, FLOAT16
from fewbit.numerics.namespace import Array, array_namespace

#: Types in which a scale can be stored.
ScaleType = Literal["float16", "bfloat16", "float32"]

#: The 16-bit formats that a scale may be rounded to; float32 needs no rounding.
_ROUNDED = {"float16": FLOAT16, "bfloat16": BFLOAT16}


def round_scale(scale: Array, scale_type: ScaleType | None) -> Array:
    """Return `scale` rounded to `scale_type`, as float32; what would be subnormal or overflow there is left alone."""
    if scale_type not in _ROUNDED:
        return scale
    xp = array_namespace(scale)
    target = _ROUNDED[scale_type]
    outside = (scale < target.smallest_normal) | (scale > target.maximum)
    return xp.where(outside, scale, target.round(scale))


def round_zero_point(zero: Array, scale_type: ScaleType | None) -> Array:
    """Return zero points of either sign, of a magnitude below 2^15, rounded to `scale_type`, as float32."""
    return _ROUNDED[scale_type].round(zero) if scale_type in _ROUNDED else zero


def scale_fits(scale: Array, scale_type: ScaleType) -> Array:
    """Return for each scale whether `scale_type` holds it exactly and as a normal number."""
    xp = array_namespace(scale)
    if scale_type not in _ROUNDED:
        return xp.ones_like(scale, dtype=xp.bool)
    target = _ROUNDED[scale_type]
    inside = (scale >= target.smallest_normal) & (scale <= target.maximum)
    return inside & (target.round(scale) == scale)
