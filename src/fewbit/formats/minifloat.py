"""Small floating-point formats: sign, `exponent` bits, `mantissa` bits.

With k = number of binades at or below |x|: step = 2^(emin - m + k), r = round(|x| / step), |code| = k * 2^m + r.
Subnormals are k = 0; r = 2^(m+1) carries into the next binade by itself. Source: IEEE 754-2019 and OCP FP8 1.0.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

from fewbit.errors import SchemeError
from fewbit.numerics.float_bits import exponents, times_power
from fewbit.numerics.lookup import look_up
from fewbit.numerics.namespace import SMALLEST_NORMAL, Array, array_namespace, compiling, stop_gradient
from fewbit.numerics.rounding import straight_through, to_whole

#: Which codes are not numbers. `fn`: the highest magnitude is NaN. `fnuz`: the code of -0 is NaN. `ieee`: the top
#: binade holds infinity and NaN. `none`: every code is a number.
Specials = Literal["fn", "fnuz", "ieee", "none"]


@dataclass(frozen=True, slots=True)
class Float:
    """A float of 1 + `exponent` + `mantissa` bits; too large values saturate.

    >>> Float(4, 3).maximum, Float(4, 3, specials="fnuz").maximum, Float(2, 1, specials="none").maximum
    (448.0, 240.0, 6.0)
    """

    #: Bits of the exponent field, 2 to 8.
    exponent: int
    #: Bits of the mantissa field, 1 to 10.
    mantissa: int
    #: Subtracted from the exponent field; `None`: 2^(exponent - 1) - 1, and one more for `fnuz`.
    bias: int | None = None
    #: Which codes are not numbers.
    specials: Specials = "fn"

    def __post_init__(self) -> None:
        if not (2 <= self.exponent <= 8 and 1 <= self.mantissa <= 10):
            raise SchemeError(f"e{self.exponent}m{self.mantissa} is outside e2..8 and m1..10")
        if self.specials not in ("fn", "fnuz", "ieee", "none"):
            raise SchemeError(f"specials {self.specials!r} is none of fn, fnuz, ieee, none")
        usual = (1 << (self.exponent - 1)) - (self.specials != "fnuz")
        object.__setattr__(self, "bias", usual if self.bias is None else self.bias)
        if not (self.smallest_normal >= SMALLEST_NORMAL and self.maximum < float("inf")):
            raise SchemeError(
                f"{self.name} with bias {self.bias} leaves the range of float32; use a bias nearer {usual}"
            )

    @property
    def name(self) -> str:
        """The word for it in notation: `e4m3`, `e4m3fnuz`, `e4m3b11fnuz`."""
        usual = (1 << (self.exponent - 1)) - (self.specials != "fnuz")
        plain = "none" if self.bits < 8 else "fn" if (self.exponent, self.mantissa) == (4, 3) else "ieee"
        return (
            f"e{self.exponent}m{self.mantissa}{'' if self.bias == usual else f'b{self.bias}'}"
            f"{'' if self.specials == plain else self.specials}"
        )

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return 1 + self.exponent + self.mantissa

    @property
    def smallest_normal(self) -> float:
        """The least positive value with a full mantissa."""
        return 2.0 ** (1 - self._bias)

    @property
    def magnitudes(self) -> tuple[float, ...]:
        """The finite magnitudes by code, ascending from 0."""
        return _magnitudes(self)

    @property
    def maximum(self) -> float:
        """The largest finite value."""
        return _magnitude(self, _finite(self) - 1)

    @property
    def levels(self) -> tuple[float, ...]:
        """Every finite value, sorted; the two zeros count once."""
        positive = self.magnitudes
        return tuple(-value for value in reversed(positive[1:])) + positive

    @property
    def reach(self) -> float:
        """The largest magnitude of a group maps to the largest finite value."""
        return self.maximum

    @property
    def beyond(self) -> float:
        """Where a value lies half a step above the largest."""
        return self.maximum + 2.0 ** (self._lowest + self._binades - 2)

    @property
    def takes_zero_point(self) -> bool:
        """Floats are symmetric."""
        return False

    @property
    def _bias(self) -> int:
        assert self.bias is not None  # set by __post_init__
        return self.bias

    def encode(self, values: Array, noise: Array | None = None) -> Array:
        """Return uint8 codes, uint16 of more than 8 bits, of the nearest levels; ties to the even bit pattern."""
        xp = array_namespace(values)
        binade, units = self._position(values, noise)
        codes = binade * 2**self.mantissa + xp.astype(units, xp.int32)
        # What float32 holds as a subnormal only is 0, not -0: XLA flushes it before it is looked at.
        negative = values <= -SMALLEST_NORMAL
        if self.specials == "fnuz":  # the code of -0 means NaN
            negative = negative & (codes > 0)
        sign = xp.astype(negative, xp.int32) * 2 ** (self.bits - 1)
        return xp.astype(codes + sign, xp.uint8 if self.bits <= 8 else xp.uint16)

    def decode(self, codes: Array) -> Array:
        """Return the float32 values of `codes`, each below 2^bits and none of them special."""
        if self.bits <= 8 and not compiling(codes):  # then a table is read faster than this is computed
            positive = self.magnitudes
            half = [*positive, *[float("nan")] * (2 ** (self.bits - 1) - len(positive))]
            minus_zero = float("nan") if self.specials == "fnuz" else -0.0
            return look_up([*half, minus_zero, *[-value for value in half[1:]]], codes)
        xp = array_namespace(codes)
        patterns = xp.astype(codes, xp.int32)
        field = (patterns & (2 ** (self.bits - 1) - 1)) >> self.mantissa
        units = (patterns & (2**self.mantissa - 1)) + xp.astype(field > 0, xp.int32) * 2**self.mantissa
        magnitude = self._magnitude(xp.astype(units, xp.float32), xp.clip(field - 1, 0, self._binades - 1))
        return xp.where(patterns >= 2 ** (self.bits - 1), -magnitude, magnitude)

    def round(self, values: Array, noise: Array | None = None) -> Array:
        """Return the nearest level of each of `values` as float32; gradients pass straight through."""
        xp = array_namespace(values)
        binade, units = self._position(stop_gradient(values), noise)
        magnitude = self._magnitude(units, binade)
        rounded = xp.where(values < 0, -magnitude, magnitude)
        return straight_through(values, rounded, -self.beyond, self.beyond)

    def to_unsigned(self, codes: Array) -> Array:
        """Codes are bit patterns already."""
        return codes

    def from_unsigned(self, patterns: Array) -> Array:
        """Codes are bit patterns already."""
        return patterns

    def _position(self, values: Array, noise: Array | None) -> tuple[Array, Array]:
        """Return the binade k and the rounded number of steps r (float32) of each |value|."""
        xp = array_namespace(values)
        magnitude = xp.clip(xp.abs(xp.astype(values, xp.float32, copy=False)), 0.0, self.maximum)
        binade = xp.clip(exponents(magnitude) - self._lowest - self.mantissa, 0, self._binades - 1)
        most = -self._lowest
        return binade, to_whole(times_power(magnitude, most - binade, (most - self._binades + 1, most)), noise)

    def _magnitude(self, units: Array, binade: Array) -> Array:
        """Return `units` steps of binade `binade`."""
        lowest = self._lowest
        return times_power(units, lowest + binade, (lowest, lowest + self._binades - 1))

    @property
    def _lowest(self) -> int:
        """The exponent of the step of binade 0, which holds the subnormals and the first normal numbers."""
        return 1 - self._bias - self.mantissa

    @property
    def _binades(self) -> int:
        """How many binades there are."""
        return math.frexp(self.maximum)[1] + self._bias - 1


def _finite(form: Float) -> int:
    """Return how many codes of one sign are numbers."""
    left_out = {"fn": 1, "ieee": 2**form.mantissa, "fnuz": 0, "none": 0}[form.specials]
    return int(2 ** (form.exponent + form.mantissa) - left_out)


def _magnitude(form: Float, code: int) -> float:
    """Return what the code of a positive number means; overflow to infinity is for the caller to refuse."""
    exponent, unit = divmod(code, 2**form.mantissa)
    whole = 2**form.mantissa * (exponent > 0) + unit
    return float(whole * 2.0 ** (max(exponent, 1) - form._bias - form.mantissa))


@functools.cache  # 32,640 of bfloat16, which few programs ask for
def _magnitudes(form: Float) -> tuple[float, ...]:
    """Return what the codes of the positive numbers mean, from 0."""
    return tuple(_magnitude(form, code) for code in range(_finite(form)))


#: OCP FP8: E4M3 has no infinity and reaches 448, E5M2 is IEEE-like and reaches 57344.
E4M3 = Float(4, 3)
E5M2 = Float(5, 2, specials="ieee")
#: OCP microscaling element types: every code is a number.
E2M1 = Float(2, 1, specials="none")
E2M3 = Float(2, 3, specials="none")
E3M2 = Float(3, 2, specials="none")
#: More mantissa and less range, IEEE-like.
E3M4 = Float(3, 4, specials="ieee")
#: Types of other accelerators: one NaN in place of -0.
E4M3FNUZ = Float(4, 3, specials="fnuz")
E5M2FNUZ = Float(5, 2, specials="fnuz")
E4M3B11FNUZ = Float(4, 3, bias=11, specials="fnuz")
#: The 16-bit types that frameworks have, too: scales are stored in them, and casts have no other scale than 1.
FLOAT16 = Float(5, 10, specials="ieee")
BFLOAT16 = Float(8, 7, specials="ieee")
