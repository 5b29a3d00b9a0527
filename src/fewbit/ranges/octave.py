"""The largest magnitude, widened until the scale is a power of two.

scale = 2^ceil(log2(max|x| / reach)), so that the scale, its reciprocal and products of short numbers with it are exact:
files hold NVFP4's global scale one way or the other, and runtimes apply it in bfloat16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbit.formats.power_of_two import PowerOfTwo
from fewbit.numerics.namespace import Array, array_namespace
from fewbit.ranges.grid import Grid

#: Rounds up; what is a few units in the last place too large for a power is clipped to it.
_UP = PowerOfTwo(1.0 + 2.0**-20)


@dataclass(frozen=True, slots=True)
class Octave:
    """Cover the largest magnitude of each box on both sides of 0, by a symmetric scale that is a power of two."""

    @property
    def name(self) -> str:
        """The word for it."""
        return "octave"

    def __call__(
        self,
        boxes: Array,
        axes: tuple[int, ...],
        grid: Grid,
        weights: Array | None = None,  # noqa: ARG002
    ) -> tuple[Array, Array]:
        """Return the bounds of a power of two over `axes`."""
        xp = array_namespace(boxes)
        largest = xp.max(xp.abs(boxes), axis=axes, keepdims=True)
        return _bounds(largest, grid)

    @property
    def statistic(self) -> str:
        """What it wants to know of a static input."""
        return "extremes"

    def calibrated(self, seen: Any, grid: Grid) -> tuple[Array, Array]:
        """Return the bounds of a power of two for the largest magnitude."""
        low, high = seen.result()
        xp = array_namespace(low)
        return _bounds(xp.max(xp.where(-low > high, -low, high)), grid)


def _bounds(largest: Array, grid: Grid) -> tuple[Array, Array]:
    xp = array_namespace(largest)
    power = _UP.round(grid.scale(-largest, largest))
    high = xp.where(largest > 0.0, power * _unit_bound(grid.format.reach), xp.zeros_like(largest))
    return -high, high


def _unit_bound(reach: float) -> float:
    """Return the bound next to `reach` that a scale of exactly 1 belongs to."""
    bound, factor = np.float32(reach), np.float32(1.0 / reach)
    while bound * factor > 1.0:
        bound = np.nextafter(bound, np.float32(0.0))
    return float(bound)
