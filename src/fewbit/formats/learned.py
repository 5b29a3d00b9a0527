"""Learned levels: 2^bits numbers for each output row, chosen for its own weights; a code is an index into them.

x' = table[row, code] * scale. The levels are no part of the format but of each quantized tensor, beside its scales.
Source: SqueezeLLM, arXiv 2306.07629, section 4.1 (k-means weighted by the sensitivity of each weight).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from fewbit.errors import SchemeError
from fewbit.numerics.namespace import Array


@dataclass(frozen=True, slots=True)
class Learned:
    """Codes of 2 to 4 bits whose levels are learned.

    >>> Learned(3).name, Learned(3).count
    ('kmeans3', 8)
    """

    #: Bits of one code.
    bits: int

    def __post_init__(self) -> None:
        if self.bits not in (2, 3, 4):
            raise SchemeError(f"learned levels have codes of 2, 3 or 4 bits, not {self.bits!r}")

    @property
    def name(self) -> str:
        """The word for it in notation."""
        return f"kmeans{self.bits}"

    @property
    def count(self) -> int:
        """How many levels each row has."""
        return int(2**self.bits)

    @property
    def levels(self) -> tuple[float, ...]:
        """None that all tensors have."""
        return ()

    @property
    def reach(self) -> float:
        """Levels are shares of the largest magnitude of a group."""
        return 1.0

    @property
    def takes_zero_point(self) -> bool:
        """Codes are indices; shifting them means nothing."""
        return False

    def encode(self, values: Array, noise: Array | None = None) -> NoReturn:  # noqa: ARG002
        """Raise: only a tensor that is quantized has levels."""
        raise SchemeError(
            f"{self.name} has no levels of its own; they are those of a tensor: use fewbit.qtensor.quantize"
        )

    def decode(self, codes: Array) -> NoReturn:
        """Raise, as `encode`."""
        self.encode(codes)

    def round(self, values: Array, noise: Array | None = None) -> NoReturn:
        """Raise, as `encode`."""
        self.encode(values, noise)

    def to_unsigned(self, codes: Array) -> Array:
        """Codes are bit patterns already."""
        return codes

    def from_unsigned(self, patterns: Array) -> Array:
        """Codes are bit patterns already."""
        return patterns


KMEANS2, KMEANS3, KMEANS4 = Learned(2), Learned(3), Learned(4)
