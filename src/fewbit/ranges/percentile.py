"""Bounds that leave out the rarest values: quantiles, linearly interpolated between order statistics.

Symmetric: high = quantile(|x|, p). Otherwise quantile(x, 1 - p) and quantile(x, p), widened to hold 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbit.errors import SchemeError
from fewbit.numerics.namespace import Array, array_namespace, settled
from fewbit.ranges.bins import quantile
from fewbit.ranges.grid import Grid


@dataclass(frozen=True, slots=True)
class Percentile:
    """Cover `percent` of the values of each box."""

    #: Share of the values inside the bounds, 50 to 100.
    percent: float = 99.9

    def __post_init__(self) -> None:
        if not 50.0 < self.percent <= 100.0:
            raise SchemeError(f"percentile {self.percent} is outside (50, 100]")

    @property
    def name(self) -> str:
        """The word for it in notation."""
        return "percentile"

    def __call__(
        self,
        boxes: Array,
        axes: tuple[int, ...],
        grid: Grid,
        weights: Array | None = None,  # noqa: ARG002
    ) -> tuple[Array, Array]:
        """Return the quantiles of `boxes` over `axes`."""
        xp = array_namespace(boxes)
        share = self.percent / 100.0
        if grid.symmetric:
            high = _quantile(_inside_last(xp.abs(boxes), axes), share, boxes, axes)
            return -high, high
        ordered = _inside_last(boxes, axes)
        low, high = (_quantile(ordered, q, boxes, axes) for q in (1.0 - share, share))
        return xp.clip(low, None, 0.0), xp.clip(high, 0.0, None)

    @property
    def statistic(self) -> str:
        """What it wants to know of a static input."""
        return "histogram"

    def calibrated(self, seen: Any, grid: Grid) -> tuple[Array, Array]:
        """Return the quantiles of what was seen."""
        share = self.percent / 100.0
        if grid.symmetric:
            high = quantile(seen, share, magnitudes=True)
            return -high, high
        low, high = (quantile(seen, q, magnitudes=False) for q in (1.0 - share, share))
        return np.minimum(low, np.float32(0.0)), np.maximum(high, np.float32(0.0))


def _inside_last(boxes: Array, axes: tuple[int, ...]) -> Array:
    """Return the values of each box sorted along a new last axis."""
    xp = array_namespace(boxes)
    outer = [axis for axis in range(boxes.ndim) if axis not in axes]
    moved = xp.permute_dims(boxes, (*outer, *axes))
    return xp.sort(xp.reshape(moved, (*(boxes.shape[axis] for axis in outer), -1)), axis=-1, stable=False)


def _quantile(ordered: Array, share: float, boxes: Array, axes: tuple[int, ...]) -> Array:
    xp = array_namespace(ordered)
    position = share * (ordered.shape[-1] - 1)
    below = int(position)
    above = min(below + 1, ordered.shape[-1] - 1)
    part = position - below
    value = settled(ordered[..., below] * (1.0 - part)) + settled(ordered[..., above] * part)
    return xp.reshape(value, tuple(1 if axis in axes else size for axis, size in enumerate(boxes.shape)))
