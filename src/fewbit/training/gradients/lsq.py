"""LSQ, of asymmetric ranges LSQ+: scales, and zero points, are learned with the weights.

Sources: Esser et al., "Learned step size quantization", arXiv:1902.08153; Bhalgat et al., "LSQ+", arXiv:2004.09576.
"""

from __future__ import annotations

from dataclasses import dataclass

from fewbit.numerics.namespace import Array
from fewbit.ranges.grid import Grid
from fewbit.training import learned_step
from fewbit.training.gradients import Parameters


@dataclass(frozen=True, slots=True)
class LearnedStep:
    """Gradients reach each scale as `round(v) - v`, divided by the root of how many numbers share it."""

    @property
    def name(self) -> str:
        """The word for it."""
        return "lsq"

    @property
    def learns(self) -> bool:
        """Scales and zero points are parameters."""
        return True

    def initial(self, low: Array, high: Array, grid: Grid) -> Parameters:
        """Return scale and zero point for the bounds."""
        return learned_step.initial(low, high, grid)

    def settled(self, parameters: Parameters, grid: Grid) -> tuple[Array, Array | None]:
        """Return both as they are stored."""
        return learned_step.settled(parameters, grid)

    def __call__(self, boxes: Array, parameters: Parameters, grid: Grid, sharing: int) -> Array:
        """Return the numbers that the codes of `boxes` stand for."""
        return learned_step.rounded(boxes, parameters, grid, sharing)
