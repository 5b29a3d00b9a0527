"""The unit in which the scales of an input are counted, where calibration fixes it and each input has its own scales.

s = u decode(encode(amax_g / reach / u)) for each group g of the input, u fixed; x' = s round(x / s). Source: NVFP4's
inputs as compressed-tensors 0.20 rounds them, `dynamic: "local"`, u the reciprocal of its global scale.
"""

from __future__ import annotations

from fewbit.box_bounds import bounds_of, group_scales
from fewbit.numerics.groups import merge, split
from fewbit.numerics.namespace import Array, array_namespace, stop_gradient
from fewbit.numerics.rounding import flushed
from fewbit.ranges.scale_levels import ScaleLevels
from fewbit.schemes.scheme import Scheme


def unit_of(low: Array, high: Array, scheme: Scheme) -> Array:
    """Return the unit, float32 (), for the bounds () of every input of a scheme whose scales are quantized."""
    inner, xp = scheme.scale_scheme, array_namespace(low)
    assert inner is not None
    largest = xp.reshape(group_scales(low, high, scheme), (1,))
    return xp.reshape(inner.grid.parameters(*inner.ranging(largest, (0,), inner.grid))[0], ())


def rounded_in_unit(values: Array, scheme: Scheme, unit: Array) -> Array:
    """Return the float32 values (..., channels) that the codes of `values` stand for, their scales counted in `unit`.

    Scales beyond the largest level saturate. Gradients pass straight through the rounding, not through the scales.
    """
    inner, shape = scheme.scale_scheme, tuple(values.shape)
    assert inner is not None
    box = scheme.granularity.box(shape)
    wanted = group_scales(*bounds_of(stop_gradient(values), box, scheme, None, None), scheme)
    scale = inner.format.decode(ScaleLevels(inner.format).nearest(wanted, unit)) * unit
    return merge(scheme.grid.rounded(split(flushed(values), box), scale, None), shape)
