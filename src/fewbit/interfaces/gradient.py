"""How a loss reaches the numbers behind rounded ones, and the ranges they are rounded by; on arrays of any framework.

A gradient works on boxes (n0, b0, n1, b1, ...) of `fewbit.numerics.groups` and parameters that broadcast to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from fewbit.numerics.namespace import Array
from fewbit.ranges.grid import Grid

#: By name what the gradient of a range learns.
Parameters = Mapping[str, Array]


class Gradient(Protocol):
    """How rounding passes gradients on."""

    @property
    def name(self) -> str:
        """The word for it."""

    @property
    def learns(self) -> bool:
        """Whether ranges are parameters of the training."""

    def initial(self, low: Array, high: Array, grid: Grid) -> Parameters:
        """Return what is trained, or kept, of the bounds `low <= 0 <= high`."""

    def settled(self, parameters: Parameters, grid: Grid) -> tuple[Array, Array | None]:
        """Return the scale as it is stored, and the zero point as a float; gradients reach what is learned."""

    def __call__(self, boxes: Array, parameters: Parameters, grid: Grid, sharing: int) -> Array:
        """Return the numbers that the codes of `boxes` stand for; `sharing` numbers have a scale in common."""
