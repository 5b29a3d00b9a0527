"""The types in which a scale can be stored, and rounding to them.

A scale is rounded to its type before codes are computed with it, so that a file holds exactly what was used.
"""

from __future__ import annotations

from typing import Literal

from fewbit.formats.minifloat import BFLOAT16, FLOAT16
from fewbit.numerics.namespace import Array, array_namespace, compiling, is_torch

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
    # A cast is faster, and GPTQ rounds the scales of each group; inductor would leave it and its way back out.
    if is_torch(scale) and scale.dtype == xp.float32 and not compiling(scale):
        import torch

        return xp.where(outside, scale, scale.to(getattr(torch, scale_type)).to(torch.float32))
    return xp.where(outside, scale, target.round(scale))


def round_scale_up(least: Array, scale_type: ScaleType | None) -> Array:
    """Return the least numbers of `scale_type` that are no less than `least` (float64, positive), as float32.

    What would be subnormal or overflow there is a float32, as in `round_scale`.
    """
    xp = array_namespace(least)
    near = xp.astype(least, xp.float32)
    single = xp.astype(xp.astype(near, xp.float64) * _one_place_where(near < least, 23), xp.float32)
    if scale_type not in _ROUNDED:
        return single
    target = _ROUNDED[scale_type]
    near = target.round(near)
    outside = (least < target.smallest_normal) | (least > target.maximum)
    factor = xp.astype(_one_place_where((near < least) & ~outside, target.mantissa), xp.float32)
    return xp.where(outside, single, target.round(near * factor))


def _one_place_where(short: Array, mantissa: int) -> Array:
    """Return factors (float64) that take a number nearer to the next one than to itself or the one after, or 1."""
    xp = array_namespace(short)
    # By 0.625 to 1.25 places, as the number lies in its binade.
    return 1.0 + 1.25 * 2.0 ** -(mantissa + 1) * xp.astype(short, xp.float64)


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
