"""Integers: signed two's complement and unsigned, 1 to 8 bits, and 16 bits for inputs.

Signed: qmin = -2^(b-1) (full range) or -(2^(b-1) - 1) (narrow), qmax = 2^(b-1) - 1. Unsigned: 0 and 2^b - 1.
A symmetric full-range scale maps the largest magnitude to (2^b - 1) / 2, as compressed-tensors and Qwix do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from fewbit.errors import SchemeError
from fewbit.numerics.namespace import Array, array_namespace, stop_gradient
from fewbit.numerics.rounding import straight_through, to_whole


@dataclass(frozen=True, slots=True)
class Int:
    """An integer of `bits` bits.

    >>> Int(4).levels[0], Int(4).levels[-1], Int(4).reach
    (-8.0, 7.0, 7.5)
    >>> Int(8, narrow=True).levels[0]
    -127.0
    """

    #: Bits of one code: 1 to 8, or 16.
    bits: int
    #: Leave out the lowest code, so that the range of a signed integer is symmetric.
    narrow: bool = False
    #: Two's complement; otherwise codes start at 0.
    signed: bool = True

    def __post_init__(self) -> None:
        if not (1 <= self.bits <= 8 or self.bits == 16):
            raise SchemeError(f"{self.name} does not exist; integers have 1 to 8 bits, or 16")
        if self.narrow and not self.signed:
            raise SchemeError(f"{self.name} has no narrow range: it has no negative code to leave out")
        if self.narrow and self.bits == 1:
            raise SchemeError("int1 narrow has a single level; use int1 asym or int2 narrow")

    @property
    def name(self) -> str:
        """The word for it in notation; `narrow` is a word of its own."""
        return f"{'' if self.signed else 'u'}int{self.bits}"

    @property
    def qmin(self) -> int:
        """Lowest code."""
        return int(self.narrow) - (1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Highest code."""
        return (1 << (self.bits - int(self.signed))) - 1

    @property
    def levels(self) -> tuple[float, ...]:
        """Every value, sorted."""
        return _levels(self.qmin, self.qmax)

    @property
    def reach(self) -> float:
        """The value to which a symmetric scale maps the largest magnitude."""
        return (2**self.bits - 1) / 2 if self.signed and not self.narrow else float(self.qmax)

    @property
    def takes_zero_point(self) -> bool:
        """Integers may be asymmetric."""
        return True

    def encode(self, values: Array, noise: Array | None = None) -> Array:
        """Return codes `clip(round(values), qmin, qmax)`; ties to even, or by `noise`."""
        return self.to_codes(self._clipped(values, noise))

    def to_codes(self, whole: Array) -> Array:
        """Return whole numbers in the range as int8, uint8, int16 or uint16."""
        xp = array_namespace(whole)
        return xp.astype(whole, getattr(xp, f"{'' if self.signed else 'u'}int{8 if self.bits <= 8 else 16}"))

    def decode(self, codes: Array) -> Array:
        """Return the codes as float32."""
        xp = array_namespace(codes)
        return xp.astype(codes, xp.float32)

    def round(self, values: Array, noise: Array | None = None) -> Array:
        """Return `clip(round(values), qmin, qmax)` as float32; gradients pass straight through."""
        rounded = self._clipped(stop_gradient(values), noise)
        return straight_through(values, rounded, self.qmin - 0.5, self.qmax + 0.5)

    def to_unsigned(self, codes: Array) -> Array:
        """Return `codes - lowest code of the full range` as unsigned codes."""
        return self._shifted(codes, self._lowest, signed=False)

    def from_unsigned(self, patterns: Array) -> Array:
        """Undo `to_unsigned`."""
        return self._shifted(patterns, -self._lowest, signed=self.signed)

    def _clipped(self, values: Array, noise: Array | None) -> Array:
        return array_namespace(values).clip(to_whole(values, noise), self.qmin, self.qmax)

    @property
    def _lowest(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    def _shifted(self, codes: Array, by: int, *, signed: bool) -> Array:
        xp = array_namespace(codes)
        kind = getattr(xp, f"{'' if signed else 'u'}int{8 if self.bits <= 8 else 16}")
        return xp.astype(xp.astype(codes, xp.int32) - by, kind)


@cache
def _levels(qmin: int, qmax: int) -> tuple[float, ...]:
    return tuple(float(code) for code in range(qmin, qmax + 1))


INT1, INT2, INT3, INT4, INT5, INT6, INT7, INT8, INT16 = (Int(bits) for bits in (*range(1, 9), 16))
UINT1, UINT2, UINT3, UINT4, UINT5, UINT6, UINT7, UINT8, UINT16 = (
    Int(bits, signed=False) for bits in (*range(1, 9), 16)
)
