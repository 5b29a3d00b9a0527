"""Small floating-point formats: sign, `exponent` bits, `mantissa` bits.

With k = number of binades at or below |x|: step = 2^(emin - m + k), r = round(|x| / step), |code| = k * 2^m + r.
Subnormals are k = 0; r = 2^(m+1) carries into the next binade by itself. Source: IEEE 754-2019 and OCP FP8 1.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from fewbit.errors import SchemeError
from fewbit.numerics.namespace import SMALLEST_NORMAL, Array, array_namespace, constants_like

Specials = Literal["fn", "ieee"]


@dataclass(frozen=True, slots=True)
class Float:
    """A float of 1 + `exponent` + `mantissa` bits with the IEEE bias; too large values saturate.

    >>> Float(4, 3).maximum, Float(5, 10, specials="ieee").maximum
    (448.0, 65504.0)
    """

    #: Bits of the exponent field, 2 to 8.
    exponent: int
    #: Bits of the mantissa field, 1 to 10.
    mantissa: int
    #: Which codes are not numbers: `fn` only the highest magnitude (NaN), `ieee` the whole top binade.
    specials: Specials = "fn"

    def __post_init__(self) -> None:
        if not (2 <= self.exponent <= 8 and 1 <= self.mantissa <= 10):
            raise SchemeError(f"e{self.exponent}m{self.mantissa} is outside e2..8 and m1..10")

    @property
    def name(self) -> str:
        """The word for it in notation."""
        return f"e{self.exponent}m{self.mantissa}"

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return 1 + self.exponent + self.mantissa

    @property
    def smallest_normal(self) -> float:
        """The least positive value with a full mantissa."""
        return 2.0 ** (2 - (1 << (self.exponent - 1)))

    @property
    def maximum(self) -> float:
        """The largest finite value."""
        return _magnitudes(self)[-1]

    @property
    def levels(self) -> tuple[float, ...]:
        """Every finite value, sorted; the two zeros count once."""
        positive = _magnitudes(self)
        return tuple(-value for value in reversed(positive[1:])) + positive

    @property
    def reach(self) -> float:
        """The largest magnitude of a group maps to the largest finite value."""
        return self.maximum

    @property
    def takes_zero_point(self) -> bool:
        """Floats are symmetric."""
        return False

    def encode(self, values: Array) -> Array:
        """Return uint8 codes of the nearest levels (formats of up to 8 bits); ties to the even bit pattern."""
        if self.bits > 8:
            raise SchemeError(f"codes have at most 8 bits and {self.name} has {self.bits}; use `round`")
        xp = array_namespace(values)
        binade, units, _ = self._position(values)
        codes = binade * 2**self.mantissa + xp.astype(units, xp.int32)
        sign = xp.astype(values < 0, xp.int32) * 2 ** (self.bits - 1)
        return xp.astype(codes + sign, xp.uint8)

    def decode(self, codes: Array) -> Array:
        """Return the float32 values of `codes`, each below 2^bits and none of them special."""
        xp = array_namespace(codes)
        positive = _magnitudes(self)
        half = [*positive, *[float("nan")] * (2 ** (self.bits - 1) - len(positive))]
        table = constants_like([*half, *[-value for value in half]], "float32", codes)
        flat = xp.take(table, xp.reshape(xp.astype(codes, xp.int64), (-1,)), axis=0)
        return xp.reshape(flat, codes.shape)

    def round(self, values: Array) -> Array:
        """Return the nearest level of each of `values` as float32."""
        xp = array_namespace(values)
        _, units, step = self._position(values)
        magnitude = units * step
        return xp.where(values < 0, -magnitude, magnitude)

    def to_unsigned(self, codes: Array) -> Array:
        """Codes are bit patterns already."""
        return codes

    def from_unsigned(self, patterns: Array) -> Array:
        """Codes are bit patterns already."""
        return patterns

    def _position(self, values: Array) -> tuple[Array, Array, Array]:
        """Return the binade k, the rounded number of steps r (float32) and the step, for each |value|."""
        xp = array_namespace(values)
        magnitude = xp.clip(xp.abs(values), 0.0, self.maximum)
        borders, steps, inverse_steps = _binades(self)
        flat = xp.reshape(magnitude, (-1,))
        binade = xp.searchsorted(constants_like(borders, "float32", values), flat, side="right")
        binade = xp.reshape(binade, magnitude.shape)
        step = _pick(steps, binade, values)
        units = xp.round(magnitude * _pick(inverse_steps, binade, values))
        return xp.astype(binade, xp.int32), units, step


@lru_cache
def _magnitudes(form: Float) -> tuple[float, ...]:
    """Return the finite magnitudes by code, ascending from 0."""
    per_binade = 2**form.mantissa
    bias = 2 ** (form.exponent - 1) - 1
    values = [
        (per_binade * (field > 0) + unit) * 2.0 ** (max(field, 1) - bias - form.mantissa)
        for field in range(2**form.exponent)
        for unit in range(per_binade)
    ]
    return tuple(values[:-1] if form.specials == "fn" else values[:-per_binade])


@lru_cache
def _binades(form: Float) -> tuple[list[float], list[float], list[float]]:
    """Return where binades 1, 2, ... begin, and the step and reciprocal step of binades 0, 1, ..."""
    borders = []
    border = 2 * form.smallest_normal
    while border <= form.maximum:
        borders.append(border)
        border *= 2
    # A step below 2^-126 would be flushed to 0, and its reciprocal overflow; such values are flushed anyway.
    steps = [max(form.smallest_normal * 2.0 ** (k - form.mantissa), SMALLEST_NORMAL) for k in range(len(borders) + 1)]
    return borders, steps, [1.0 / step for step in steps]


def _pick(table: list[float], index: Array, like: Array) -> Array:
    xp = array_namespace(index)
    flat = xp.take(constants_like(table, "float32", like), xp.reshape(index, (-1,)), axis=0)
    return xp.reshape(flat, index.shape)


#: OCP FP8 E4M3: no infinity, largest value 448.
E4M3 = Float(4, 3, "fn")
#: The 16-bit types that scales are stored in; used through `round` only.
FLOAT16 = Float(5, 10, "ieee")
BFLOAT16 = Float(8, 7, "ieee")
