"""The contract of a number format: what every format of `fewbit.formats` offers.

Values are float32 and already divided by their scale; codes are int8 (integers) or uint8 (everything else), of 16 bits
where a format has more than 8.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from fewbit.numerics.namespace import Array


@runtime_checkable
class NumberFormat(Protocol):
    """What one stored number can be."""

    @property
    def name(self) -> str:
        """The word for it in notation: `int4`, `e4m3`."""

    @property
    def bits(self) -> int:
        """Bits of one code."""

    @property
    def levels(self) -> tuple[float, ...]:
        """Every finite value, sorted, each once."""

    @property
    def reach(self) -> float:
        """The value to which a symmetric scale maps the largest magnitude of a group."""

    @property
    def takes_zero_point(self) -> bool:
        """Whether codes may be shifted by an integer zero point."""

    def encode(self, values: Array, noise: Array | None = None) -> Array:
        """Return the codes of the nearest levels; ties to the even code, too large values saturate.

        With `noise`, uniform in [0, 1) and of the shape of `values`, rounding is stochastic: a value between two
        levels takes the upper one with a probability in proportion to its place between them.
        """

    def decode(self, codes: Array) -> Array:
        """Return the float32 values of `codes`."""

    def round(self, values: Array, noise: Array | None = None) -> Array:
        """Return `decode(encode(values, noise))`, differentiable by straight-through.

        The gradient is 1, and 0 where a value lies more than half a step beyond the levels and saturates.
        """

    def to_unsigned(self, codes: Array) -> Array:
        """Return `codes` as bit patterns in [0, 2^bits), for packing."""

    def from_unsigned(self, patterns: Array) -> Array:
        """Undo `to_unsigned`."""
