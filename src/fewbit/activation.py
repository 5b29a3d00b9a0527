"""How the input or output of a layer is rounded: each time by its own range, or by one that calibration has fixed.

Dynamic: x' = quantize(x).dequantize(); a cast needs no range at all. Static: x' = (clip(round(x / s) + z) - z) s with
s, z from a statistic; where scales are quantized, from it comes their unit alone (`fewbit.scale_unit`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

from fewbit.errors import CalibrationError
from fewbit.numerics.namespace import Array, array_namespace, device, to_float32, to_numpy
from fewbit.qtensor import fake_quantize, quantize
from fewbit.scale_unit import rounded_in_unit, unit_of
from fewbit.schemes.granularity import PerTensor
from fewbit.schemes.scheme import Scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """The rounding of arrays (..., channels)."""

    scheme: Scheme
    #: float32, () or (channels,), or the unit () of the scales of each input; `None` of a dynamic scheme.
    scale: Array | None = None
    #: float32 whole numbers in the shape of the scale; `None` when symmetric or dynamic.
    zero_point: Array | None = None

    @classmethod
    def calibrated(cls, scheme: Scheme, seen: Any) -> Activation:
        """Return the rounding by the range of what `seen`, the statistic that the range method asks for, has seen.

        Raises:
            CalibrationError: nothing was seen.

        """
        low, high = calibrated_bounds(scheme, seen)
        if scheme.fixes_unit:
            return cls(scheme=scheme, scale=unit_of(low, high, scheme))
        scale, zero = scheme.grid.parameters(low, high)
        return cls(scheme=scheme, scale=scale, zero_point=zero)

    def rounded(self, values: Array) -> Array:
        """Return the float32 values that the codes of `values` stand for; a static NaN is not found here.

        Gradients pass straight through the rounding.
        """
        if not self.scheme.scaled:
            return self.scheme.format.round(values)
        if self.scale is None:
            if not prod(values.shape):  # without numbers there is no range, and nothing to round
                return to_float32(values)
            if getattr(values, "requires_grad", False):
                return fake_quantize(values, self.scheme)
            return quantize(values, self.scheme).dequantize()
        if self.scheme.fixes_unit:
            return rounded_in_unit(values, self.scheme, self.scale) if prod(values.shape) else to_float32(values)
        return self.scheme.grid.rounded(to_float32(values), self.scale, self.zero_point)

    def like(self, values: Array) -> Activation:
        """Return this rounding with its numbers in the framework and on the device of `values`."""
        xp = array_namespace(values)

        def moved(own: Array | None) -> Array | None:
            return None if own is None else xp.asarray(to_numpy(own), dtype=xp.float32, device=device(values))

        return Activation(scheme=self.scheme, scale=moved(self.scale), zero_point=moved(self.zero_point))


def calibrated_bounds(scheme: Scheme, seen: Any) -> tuple[Array, Array]:
    """Return the bounds, () or (channels,), of what `seen`, the statistic that the range method asks for, has seen.

    Raises:
        CalibrationError: nothing was seen.

    """
    if seen is not None and not seen.count:
        raise CalibrationError("no calibration input reached it, so it has no range; give other batches, or keep it")
    low, high = scheme.ranging.calibrated(seen, scheme.grid)
    if low.ndim and (scheme.granularity == PerTensor() or scheme.fixes_unit):
        xp = array_namespace(low)
        low, high = xp.min(low), xp.max(high)
    return low, high
