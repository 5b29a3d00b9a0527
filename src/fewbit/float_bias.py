"""A float bias that a quantized layer adds instead of its own."""

from __future__ import annotations

from dataclasses import dataclass

from fewbit.formats.scale_type import ScaleType, round_zero_point
from fewbit.numerics.namespace import Array


@dataclass(frozen=True, slots=True)
class FloatBias:
    """A bias of (out,) numbers."""

    #: float32 (out,).
    values: Array

    @classmethod
    def stored_as(cls, values: Array, storage_type: ScaleType) -> FloatBias:
        """Return the bias as files of this type hold it."""
        return cls(round_zero_point(values, storage_type))

    def dequantize(self) -> Array:
        """Return the float32 values (out,)."""
        return self.values
