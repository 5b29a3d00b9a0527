"""A bias in int32, counted in the unit of its layer's integer products: scale of the input x scale of the weight.

codes = round(b / (s_x s_w)), b' = codes (s_x s_w). Where half of int32 does not hold a code, s_w grows until it does.
Source: Jacob et al. 2018, section 2.4.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from fewbit.errors import NonFiniteError
from fewbit.formats.scale_type import round_scale_up
from fewbit.numerics.namespace import SMALLEST_NORMAL, Array, array_namespace, to_float32
from fewbit.qtensor import QTensor

#: What the bias of a quantized layer can be.
BiasType = Literal["float", "int32"]
BIAS_TYPES: tuple[BiasType, ...] = get_args(BiasType)

#: The products that a bias is added to have the other half of the range: runtimes add in int32, and a sum would wrap.
_LARGEST_CODE = 2.0**30
#: A power of two that float32 holds with room for rounding up.
_LARGEST_SCALE = 2.0**127


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegerBias:
    """A bias of (out,) numbers."""

    #: int32 (out,).
    codes: Array
    #: float32 (out,), or (1,) for a weight of one scale; with zero point 0.
    scale: Array

    def dequantize(self) -> Array:
        """Return the float32 values (out,) that the codes stand for; a float32 has 24 of the 32 bits."""
        xp = array_namespace(self.codes)
        return xp.astype(self.codes, xp.float32) * self.scale


def bias_scale(input_scale: Array, weight: QTensor) -> Array:
    """Return the unit of a bias, float32 (out,) or (1,): `input_scale` () times the scales of a weight.

    `weight` has one for each output channel, or one for all.
    """
    return array_namespace(input_scale).reshape(weight.scale_values(), (-1,)) * input_scale


def quantize_bias(bias: Array, input_scale: Array, weight: QTensor) -> IntegerBias:
    """Return `bias` (out,) rounded to int32, in float64: float32 does not tell neighbouring codes of 32 bits apart.

    `weight` is one that `make_room` has returned. Ties go to the even code.

    Raises:
        NonFiniteError: the product of the scales is beyond float32.

    """
    xp = array_namespace(bias)
    scale = bias_scale(input_scale, weight)
    if not bool(xp.all(xp.isfinite(scale))):
        raise NonFiniteError(
            f"the scale {float(input_scale):.3g} of its input times that of its weight, "
            f"{float(xp.max(weight.scale_values())):.3g}, is beyond float32; leave out `bias`"
        )
    codes = xp.round(_exact(to_float32(bias)) / _exact(scale))
    return IntegerBias(codes=xp.astype(codes, xp.int32), scale=scale)


def make_room(quantized: QTensor, weight: Array, bias: Array, input_scale: Array) -> tuple[QTensor, tuple[str, ...]]:
    """Return `quantized` with scales under which int32 holds the bias (out,), and remarks on those that had to grow.

    A scale grows to the least number of its type that will do. What has it, of `weight` (out, in), is rounded to
    nearest anew, around the zero point that was there.

    Raises:
        NonFiniteError: no float32 is large enough.

    """
    xp = array_namespace(bias)
    scheme, scale = quantized.scheme, quantized.scale_values()
    least = _least_unit(bias)
    short = bias_scale(input_scale, quantized) < least
    count = int(xp.sum(xp.astype(short, xp.int32)))
    if not count:
        return quantized, ()
    alone = scale.shape[0] == 1
    if alone:
        least, short = xp.max(least, keepdims=True), xp.any(short, keepdims=True)
    needed = _exact(least) / _exact(input_scale)
    if float(xp.max(needed)) > _LARGEST_SCALE:
        raise NonFiniteError(
            f"the scale of its input is {float(input_scale):.3g}: no scale of its weight lets int32 hold a bias of "
            f"{float(xp.max(xp.abs(bias))):.3g}; leave out `bias`"
        )
    short = short[:, None]
    larger = xp.where(short, round_scale_up(needed, scheme.scale_type)[:, None], scale)
    anew = scheme.grid.codes(to_float32(weight), larger, quantized.zero_point)
    remark = (
        f"int32 does not hold {count} of {bias.shape[0]} numbers of its bias: the scale of "
        f"{'the weight' if alone else 'their weights'} grew {float(xp.max(larger / scale)):.3g} times"
        f"{'' if alone or count == 1 else ' at most'}, and codes were rounded to nearest anew"
    )
    return replace(quantized, codes=xp.where(short, anew, quantized.codes), scale=larger), (remark,)


def _least_unit(bias: Array) -> Array:
    """Return the least float32 units (out,) in which the numbers of `bias` have codes of 32 bits."""
    xp = array_namespace(bias)
    return round_scale_up(xp.clip(_exact(xp.abs(to_float32(bias))) / _LARGEST_CODE, SMALLEST_NORMAL), "float32")


def _exact(values: Array) -> Array:
    xp = array_namespace(values)
    return xp.astype(values, xp.float64)
