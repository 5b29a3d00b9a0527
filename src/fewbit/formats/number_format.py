"""The contract of a number format: what every format of `fewbit.formats` offers.

Values are float32 and already divided by their scale; codes are int8 (integers) or uint8 (everything else).
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

    def encode(self, values: Array) -> Array:
        """Return the codes of the nearest levels; ties to the even code, too large values saturate."""

    def decode(self, codes: Array) -> Array:
        """Return the float32 values of `codes`."""

    def to_unsigned(self, codes: Array) -> Array:
        """Return `codes` as bit patterns in [0, 2^bits), for packing."""

    def from_unsigned(self, patterns: Array) -> Array:
        """Undo `to_unsigned`."""
