"""How a scale and zero point are chosen: from values in, to a low and a high bound out.

Every range method is a callable frozen dataclass `(boxes, axes) -> (low, high)`; `low <= 0 <= high`.
"""

from __future__ import annotations

from typing import Protocol

from fewbit.numerics.namespace import Array

#: Range methods by the word for them in notation.
RANGES = {
    "absmax": "fewbit.ranges.absmax:AbsMax",
    "minmax": "fewbit.ranges.minmax:MinMax",
}


class RangeMethod(Protocol):
    """How the bounds of each group are chosen."""

    @property
    def name(self) -> str:
        """The word for it in notation."""

    def __call__(self, boxes: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
        """Return the lower and upper bound of `boxes` reduced over `axes`."""
