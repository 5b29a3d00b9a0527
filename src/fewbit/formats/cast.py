"""Casts: the 16-bit floats of frameworks as they are, under no scale: fp16 and bf16.

x' = the nearest number of the type, ties to the even bit pattern; too large values saturate, so that none becomes
infinite, and what is subnormal in float32 is 0. Codes are the bit patterns. Source: IEEE 754-2019 (binary16); bfloat16
is float32 without its lower half.
"""

from __future__ import annotations

from dataclasses import dataclass

from fewbit.formats.minifloat import BFLOAT16, FLOAT16, Float
from fewbit.numerics import sixteen_bits
from fewbit.numerics.namespace import Array, stop_gradient, to_float32
from fewbit.numerics.rounding import straight_through


@dataclass(frozen=True, slots=True)
class Cast:
    """A 16-bit float whose numbers stand for themselves.

    >>> FP16.largest, FP16.bits, BF16.overflows
    (65504.0, 16, False)
    """

    #: Its levels.
    form: Float
    #: The word for it in notation.
    name: str
    #: The word of the frameworks for it.
    dtype: sixteen_bits.Type

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return self.form.bits

    @property
    def levels(self) -> tuple[float, ...]:
        """Every finite value, sorted; some 64,000."""
        return self.form.levels

    @property
    def largest(self) -> float:
        """The largest finite value."""
        return self.form.maximum

    @property
    def overflows(self) -> bool:
        """Whether it ends far below float32."""
        return self.largest < 2.0**127

    @property
    def reach(self) -> float:
        """A scale of 1 leaves numbers as they are."""
        return 1.0

    @property
    def takes_zero_point(self) -> bool:
        """There is nothing to shift."""
        return False

    def encode(self, values: Array, noise: Array | None = None) -> Array:
        """Return the bit patterns, uint16, of the nearest numbers, or of one of both neighbours by `noise`."""
        if noise is not None or not sixteen_bits.known(values):
            return self.form.encode(to_float32(values), noise)
        return sixteen_bits.patterns(sixteen_bits.cast(to_float32(values), self.dtype, self.largest))

    def decode(self, codes: Array) -> Array:
        """Return the float32 numbers that `codes` are the bit patterns of; none of them is special."""
        if not sixteen_bits.known(codes):
            return self.form.decode(codes)
        return sixteen_bits.numbers(codes, self.dtype).float()

    def round(self, values: Array, noise: Array | None = None) -> Array:
        """Return the nearest numbers as float32; gradients pass straight through."""
        constants = to_float32(stop_gradient(values))
        if noise is not None or not sixteen_bits.known(values):
            rounded = self.form.round(constants, noise)
        else:
            rounded = sixteen_bits.cast(constants, self.dtype, self.largest).float()
        return straight_through(values, rounded, -self.form.beyond, self.form.beyond)

    def to_unsigned(self, codes: Array) -> Array:
        """Codes are bit patterns already."""
        return codes

    def from_unsigned(self, patterns: Array) -> Array:
        """Codes are bit patterns already."""
        return patterns


FP16 = Cast(FLOAT16, "fp16", "float16")
BF16 = Cast(BFLOAT16, "bf16", "bfloat16")
