"""Codebooks: any sorted table of values; a code is an index into it.

A value goes to the nearest entry, ties to the even index: with m_i the middle of entries i and i+1, the code is the
number of middles at or below the value, where a tie counts only when the upper index is even. Middles that float32
cannot hold have no ties and are rounded up. NF4: QLoRA, arXiv 2305.14314, appendix E.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise

import numpy as np

from fewbit.errors import SchemeError
from fewbit.numerics.lookup import look_up, rank, rank_between
from fewbit.numerics.namespace import SMALLEST_NORMAL, Array, array_namespace, stop_gradient
from fewbit.numerics.rounding import straight_through


@dataclass(frozen=True, slots=True)
class Codebook:
    """A table of 2 to 256 values.

    >>> TERNARY.bits, TERNARY.levels
    (2, (-1.0, 0.0, 1.0))
    """

    #: The entries, ascending; each is rounded to float32.
    entries: tuple[float, ...]
    #: The word for it in notation.
    name: str = "codebook"
    #: For each entry but the first the least float32 that belongs to it or to a higher one.
    thresholds: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rounded = tuple(float(np.float32(entry)) for entry in self.entries)
        object.__setattr__(self, "entries", rounded)
        if not 2 <= len(rounded) <= 256:
            raise SchemeError(f"a codebook has 2 to 256 entries, not {len(rounded)}")
        if not all(np.isfinite(rounded)) or any(a >= b for a, b in pairwise(rounded)):
            raise SchemeError(f"the entries of codebook {self.name!r} are not finite and ascending in float32")
        object.__setattr__(self, "thresholds", _thresholds(rounded))

    @property
    def bits(self) -> int:
        """Bits of one code."""
        return (len(self.entries) - 1).bit_length()

    @property
    def levels(self) -> tuple[float, ...]:
        """The entries."""
        return self.entries

    @property
    def reach(self) -> float:
        """The largest magnitude of a group maps to the largest magnitude of the table."""
        return max(-self.entries[0], self.entries[-1])

    @property
    def takes_zero_point(self) -> bool:
        """Codes are indices; shifting them means nothing."""
        return False

    def encode(self, values: Array, noise: Array | None = None) -> Array:
        """Return uint8 indices of the nearest entries, or of one of both neighbours by `noise`."""
        xp = array_namespace(values)
        if noise is not None:
            return xp.astype(rank_between(self.entries, values, noise), xp.uint8)
        return xp.astype(rank(self.thresholds, values), xp.uint8)

    def decode(self, codes: Array) -> Array:
        """Return the entries at `codes` as float32."""
        return look_up(self.entries, codes)

    def round(self, values: Array, noise: Array | None = None) -> Array:
        """Return the nearest entries; gradients pass straight through."""
        table = self.entries
        rounded = self.decode(self.encode(stop_gradient(values), noise))
        low, high = (3 * table[0] - table[1]) / 2, (3 * table[-1] - table[-2]) / 2
        return straight_through(values, rounded, low, high)

    def to_unsigned(self, codes: Array) -> Array:
        """Codes are bit patterns already."""
        return codes

    def from_unsigned(self, patterns: Array) -> Array:
        """Codes are bit patterns already."""
        return patterns


def _thresholds(entries: tuple[float, ...]) -> tuple[float, ...]:
    """Return for each entry but the first the least float32 that belongs to it or to a higher one."""
    thresholds = []
    for upper in range(1, len(entries)):
        middle = (Fraction(entries[upper - 1]) + Fraction(entries[upper])) / 2
        nearest = np.float32(float(middle))
        tie_goes_up = upper % 2 == 0
        if Fraction(float(nearest)) < middle or (Fraction(float(nearest)) == middle and not tie_goes_up):
            nearest = np.nextafter(nearest, np.float32(np.inf))
        # Values below 2^-126 count as 0, and XLA reads such a threshold as 0 too: the next one that it can tell apart.
        if 0.0 < nearest < SMALLEST_NORMAL:
            nearest = np.float32(SMALLEST_NORMAL)
        thresholds.append(float(nearest))
    return tuple(thresholds)


#: Quantiles of a normal distribution scaled to [-1, 1], with an exact 0.
NF4 = Codebook(
    (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ),
    "nf4",
)  # fmt: skip
#: Signs.
BINARY = Codebook((-1.0, 1.0), "binary")
#: Signs and 0.
TERNARY = Codebook((-1.0, 0.0, 1.0), "ternary")
