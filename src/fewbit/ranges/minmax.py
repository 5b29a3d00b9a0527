"""The extremes, widened to hold 0: low = min(0, min x), high = max(0, max x)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fewbit.numerics.namespace import Array, array_namespace
from fewbit.ranges.grid import Grid


@dataclass(frozen=True, slots=True)
class MinMax:
    """Cover the extremes of each box, and 0, so that 0 stays exact."""

    @property
    def name(self) -> str:
        """The word for it in notation."""
        return "minmax"

    def __call__(
        self,
        boxes: Array,
        axes: tuple[int, ...],
        grid: Grid | None = None,  # noqa: ARG002
        weights: Array | None = None,  # noqa: ARG002
    ) -> tuple[Array, Array]:
        """Return `min(0, min x)` and `max(0, max x)` over `axes`."""
        xp = array_namespace(boxes)
        low, high = (reduce(boxes, axis=axes, keepdims=True) for reduce in (xp.min, xp.max))
        return xp.clip(low, None, 0.0), xp.clip(high, 0.0, None)

    @property
    def statistic(self) -> str:
        """What it wants to know of a static input."""
        return "extremes"

    def calibrated(self, seen: Any, grid: Grid | None = None) -> tuple[Array, Array]:  # noqa: ARG002
        """Return the extremes, widened to hold 0."""
        low, high = seen.result()
        xp = array_namespace(low)
        return xp.clip(low, None, 0.0), xp.clip(high, 0.0, None)
