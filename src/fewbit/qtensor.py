"""QTensor: the codes of a quantized tensor with what is needed to read them, and `quantize`, which makes one.

dequantize() = (decode(codes) - zero_point) * scale, scale and zero point spread over their groups.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fewbit.formats.minifloat import BFLOAT16, FLOAT16
from fewbit.numerics import affine
from fewbit.numerics.groups import beside_boxes, box_axes, counts, merge, split
from fewbit.numerics.namespace import Array, array_namespace, to_float32
from fewbit.schemes.scheme import ScaleType, Scheme

if TYPE_CHECKING:
    from fewbit.formats.integer import Int

#: The 16-bit formats that a scale may be rounded to; float32 needs no rounding.
_ROUNDED = {"float16": FLOAT16, "bfloat16": BFLOAT16}


@dataclass(frozen=True, slots=True, kw_only=True)
class QTensor:
    """A quantized tensor of shape (out, in).

    `scale.shape == counts(codes.shape, scheme.granularity.box(codes.shape))`, likewise `zero_point`.
    """

    #: int8 or uint8, in the shape of the original.
    codes: Array
    #: float32 values, each exact in `scheme.scale_type` (or normal in float32 only, see `quantize`).
    scale: Array
    #: Codes that stand for 0, of the type of `codes`; `None` when symmetric.
    zero_point: Array | None
    #: How the codes came about.
    scheme: Scheme

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the original."""
        return tuple(self.codes.shape)

    def dequantize(self) -> Array:
        """Return the float32 values that the codes stand for."""
        box = self.scheme.granularity.box(self.shape)
        values = self.scheme.format.decode(split(self.codes, box))
        if self.zero_point is not None:
            values = values - self.scheme.format.decode(beside_boxes(self.zero_point))
        return merge(values * beside_boxes(self.scale), self.shape)

    def map(self, function: object) -> QTensor:
        """Return a copy with `function` applied to every array (to move between devices or frameworks)."""
        assert callable(function)
        zero_point = None if self.zero_point is None else function(self.zero_point)
        return replace(self, codes=function(self.codes), scale=function(self.scale), zero_point=zero_point)


def quantize(weight: Array, scheme: Scheme) -> QTensor:
    """Return `weight` rounded to the nearest level of `scheme`; groups lie along the last axis.

    The scale is rounded to `scheme.scale_type` (`None`: float32, unrounded) before codes are computed with it. One
    that would be subnormal there keeps its float32 value. `weight` must be finite: callers check, since numerics
    cannot raise under jit.

    >>> import numpy as np
    >>> from fewbit.schemes.notation import parse_scheme
    >>> quantize(np.asarray([[0.0, 7.5, -7.5, 3.2]]), parse_scheme("int4 channel")).codes.tolist()
    [[0, 7, -8, 3]]
    """
    box = scheme.granularity.box(tuple(weight.shape))
    boxes = split(to_float32(weight), box)
    low, high = scheme.ranging(boxes, box_axes(weight.ndim))
    if scheme.symmetric:
        scale = round_scale(affine.symmetric_scale(_larger(-low, high), scheme.format.reach), scheme.scale_type)
        codes = scheme.format.encode(boxes * (1.0 / beside_boxes(scale)))
        return QTensor(codes=merge(codes, tuple(weight.shape)), scale=scale, zero_point=None, scheme=scheme)
    integer: Int = scheme.format  # type: ignore[assignment]  # Scheme refuses zero points elsewhere
    scale = affine.asymmetric_scale(low, high, integer.qmax - integer.qmin)
    scale = round_scale(scale, scheme.scale_type)
    zero = affine.zero_point(low, scale, integer.qmin, integer.qmax)
    codes = affine.encode(boxes, beside_boxes(scale), beside_boxes(zero), integer.qmin, integer.qmax)
    return QTensor(
        codes=merge(integer.to_codes(codes), tuple(weight.shape)),
        scale=scale,
        zero_point=integer.to_codes(zero),
        scheme=scheme,
    )


def round_scale(scale: Array, scale_type: ScaleType | None) -> Array:
    """Return `scale` rounded to `scale_type`, as float32; what would be subnormal or overflow there is left alone."""
    if scale_type not in _ROUNDED:
        return scale
    xp = array_namespace(scale)
    target = _ROUNDED[scale_type]
    outside = (scale < target.smallest_normal) | (scale > target.maximum)
    return xp.where(outside, scale, target.round(scale))


def scale_fits(scale: Array, scale_type: ScaleType) -> Array:
    """Return for each scale whether `scale_type` holds it exactly and as a normal number."""
    xp = array_namespace(scale)
    if scale_type not in _ROUNDED:
        return xp.ones_like(scale, dtype=xp.bool)
    target = _ROUNDED[scale_type]
    inside = (scale >= target.smallest_normal) & (scale <= target.maximum)
    return inside & (target.round(scale) == scale)


def scale_shape(shape: tuple[int, ...], scheme: Scheme) -> tuple[int, ...]:
    """Return the shape of the scale of a tensor of `shape`."""
    return counts(shape, scheme.granularity.box(shape))


def _larger(a: Array, b: Array) -> Array:
    xp = array_namespace(a)
    return xp.where(a > b, a, b)
