"""Powers of two: E8M0, the scale type of the OCP microscaling formats 1.0.

value = 2^(code - 127). Code 255 is NaN; code 0 is 2^-127, which float32 holds only as a subnormal, so it is never made.
A value 2^k * f with 1 <= f < 2 becomes 2^k, or 2^(k+1) when f >= `up_from`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from fewbit.errors import SchemeError
from fewbit.numerics.lookup import look_up, rank, rank_between
from fewbit.numerics.namespace import Array, array_namespace, stop_gradient
from fewbit.numerics.rounding import straight_through

_BIAS = 127
_LARGEST = 254
_LEVELS = tuple(2.0 ** (code - _BIAS) for code in range(1, _LARGEST + 1))


@dataclass(frozen=True, slots=True)
class PowerOfTwo:
    """An unsigned power of two in 8 bits; for scales.

    >>> PowerOfTwo().levels[0] == 2.0**-126, PowerOfTwo().levels[-1] == 2.0**127
    (True, True)
    """

    #: Fractions from here on go to the next power; 2 truncates.
    up_from: float = 1.5

    def __post_init__(self) -> None:
        if not 1.0 < self.up_from <= 2.0:
            raise SchemeError(f"up_from {self.up_from} is outside (1, 2]")

    @property
    def name(self) -> str:
        """The word for it."""
        return "e8m0"

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return 8

    @property
    def levels(self) -> tuple[float, ...]:
        """Every value that is made, sorted."""
        return _LEVELS

    @property
    def reach(self) -> float:
        """A scale of 1 leaves scales as they are."""
        return 1.0

    @property
    def takes_zero_point(self) -> bool:
        """There is nothing to shift."""
        return False

    def encode(self, values: Array, noise: Array | None = None) -> Array:
        """Return uint8 codes 1 to 254 of positive `values`; 0 and below become the least power."""
        xp = array_namespace(values)
        if noise is not None:
            return xp.astype(rank_between(self.levels, values, noise) + 1, xp.uint8)
        return xp.astype(rank(_starts(self.up_from), values) + 1, xp.uint8)

    def decode(self, codes: Array) -> Array:
        """Return `2^(codes - 127)` as float32; the codes 0 and 255 give NaN."""
        return look_up([float("nan"), *self.levels, float("nan")], codes)

    def round(self, values: Array, noise: Array | None = None) -> Array:
        """Return the powers of two that `values` become; gradients of positive values pass straight through."""
        rounded = self.decode(self.encode(stop_gradient(values), noise))
        return straight_through(values, rounded, 0.0, float("inf"))

    def to_unsigned(self, codes: Array) -> Array:
        """Codes are bit patterns already."""
        return codes

    def from_unsigned(self, patterns: Array) -> Array:
        """Codes are bit patterns already."""
        return patterns


@lru_cache
def _starts(up_from: float) -> tuple[float, ...]:
    """Return for each power but the first the least value that becomes it."""
    return tuple(up_from * level for level in _LEVELS[:-1])
