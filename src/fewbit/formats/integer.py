"""Two's complement integers of 1 to 8 bits.

Levels are qmin ... qmax with qmin = -2^(b-1) (full range) or -(2^(b-1) - 1) (narrow) and qmax = 2^(b-1) - 1.
A symmetric full-range scale maps the largest magnitude to (2^b - 1) / 2, as compressed-tensors and Qwix do.
"""

from __future__ import annotations

from dataclasses import dataclass

from fewbit.errors import SchemeError
from fewbit.numerics.namespace import Array, array_namespace


@dataclass(frozen=True, slots=True)
class Int:
    """A signed integer of `bits` bits.

    >>> Int(4).levels[0], Int(4).levels[-1], Int(4).reach
    (-8.0, 7.0, 7.5)
    >>> Int(8, narrow=True).levels[0]
    -127.0
    """

    #: Bits of one code, 1 to 8.
    bits: int
    #: Leave out the lowest code, so that the range is symmetric.
    narrow: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise SchemeError(f"int{self.bits} does not exist; integers have 1 to 8 bits")
        if self.narrow and self.bits == 1:
            raise SchemeError("int1 narrow has a single level; use int1 asym or int2 narrow")

    @property
    def name(self) -> str:
        """The word for it in notation; `narrow` is a word of its own."""
        return f"int{self.bits}"

    @property
    def qmin(self) -> int:
        """Lowest code."""
        return -(1 << (self.bits - 1)) + int(self.narrow)

    @property
    def qmax(self) -> int:
        """Highest code."""
        return (1 << (self.bits - 1)) - 1

    @property
    def levels(self) -> tuple[float, ...]:
        """Every value, sorted."""
        return tuple(float(code) for code in range(self.qmin, self.qmax + 1))

    @property
    def reach(self) -> float:
        """The value to which a symmetric scale maps the largest magnitude."""
        return float(self.qmax) if self.narrow else (2**self.bits - 1) / 2

    @property
    def takes_zero_point(self) -> bool:
        """Integers may be asymmetric."""
        return True

    def encode(self, values: Array) -> Array:
        """Return int8 codes `clip(round(values), qmin, qmax)`; ties to even."""
        xp = array_namespace(values)
        return xp.astype(xp.clip(xp.round(values), self.qmin, self.qmax), xp.int8)

    def decode(self, codes: Array) -> Array:
        """Return the codes as float32."""
        xp = array_namespace(codes)
        return xp.astype(codes, xp.float32)

    def to_unsigned(self, codes: Array) -> Array:
        """Return `codes + 2^(bits - 1)` as uint8."""
        xp = array_namespace(codes)
        return xp.astype(xp.astype(codes, xp.int32) + 2 ** (self.bits - 1), xp.uint8)

    def from_unsigned(self, patterns: Array) -> Array:
        """Return `patterns - 2^(bits - 1)` as int8."""
        xp = array_namespace(patterns)
        return xp.astype(xp.astype(patterns, xp.int32) - 2 ** (self.bits - 1), xp.int8)


INT1, INT2, INT3, INT4, INT5, INT6, INT7, INT8 = (Int(bits) for bits in range(1, 9))
