"""The largest magnitude, both ways: low = -max|x|, high = max|x|."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fewbit.numerics.namespace import Array, array_namespace
from fewbit.ranges.grid import Grid


@dataclass(frozen=True, slots=True)
class AbsMax:
    """Cover the largest magnitude of each box on both sides of 0."""

    @property
    def name(self) -> str:
        """The word for it in notation."""
        return "absmax"

    def __call__(
        self,
        boxes: Array,
        axes: tuple[int, ...],
        grid: Grid | None = None,  # noqa: ARG002
        weights: Array | None = None,  # noqa: ARG002
    ) -> tuple[Array, Array]:
        """Return `-max|x|` and `max|x|` over `axes`."""
        xp = array_namespace(boxes)
        high = xp.max(xp.abs(boxes), axis=axes, keepdims=True)
        return -high, high

    @property
    def statistic(self) -> str:
        """What it wants to know of a static input."""
        return "extremes"

    def calibrated(self, seen: Any, grid: Grid | None = None) -> tuple[Array, Array]:  # noqa: ARG002
        """Return the largest magnitude both ways."""
        low, high = seen.result()
        xp = array_namespace(low)
        largest = xp.where(-low > high, -low, high)
        return -largest, largest
