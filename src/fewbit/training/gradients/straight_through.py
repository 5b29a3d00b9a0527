"""Straight-through: the gradient 1 where a number lies in the range, 0 where it was clipped, none for the range.

Source: Bengio, Leonard, Courville, "Estimating or propagating gradients through stochastic neurons", arXiv:1308.3432.
"""

from __future__ import annotations

from dataclasses import dataclass

from fewbit.numerics.namespace import Array
from fewbit.ranges.grid import Grid
from fewbit.training.gradients import Parameters


@dataclass(frozen=True, slots=True)
class StraightThrough:
    """Ranges follow the numbers; nothing is learned of them."""

    @property
    def name(self) -> str:
        """The word for it."""
        return "straight-through"

    @property
    def learns(self) -> bool:
        """Ranges are no parameters."""
        return False

    def initial(self, low: Array, high: Array, grid: Grid) -> Parameters:  # noqa: ARG002  # one signature for all
        """Return the bounds themselves."""
        return {"low": low, "high": high}

    def settled(self, parameters: Parameters, grid: Grid) -> tuple[Array, Array | None]:
        """Return scale and zero point for the bounds."""
        return grid.parameters(parameters["low"], parameters["high"])

    def __call__(self, boxes: Array, parameters: Parameters, grid: Grid, sharing: int) -> Array:  # noqa: ARG002
        """Return the numbers that the codes of `boxes` stand for."""
        return grid.rounded(boxes, *self.settled(parameters, grid))
