"""EWGS: a number's gradient g is scaled by how its step goes with its level: g (1 + delta sign(g) (v - round(v))).

v = x / scale, so that the difference is at most half a step; scales are learned as by LSQ.
Source: Lee, Kim, Ham, "Network quantization with element-wise gradient scaling", CVPR 2021, equation 6.
"""

from __future__ import annotations

from dataclasses import dataclass

from fewbit.errors import RecipeError
from fewbit.numerics.gradient import shaped
from fewbit.numerics.namespace import Array, stop_gradient
from fewbit.ranges.grid import Grid
from fewbit.training import learned_step
from fewbit.training.gradients import Parameters
from fewbit.training.gradients.lsq import LearnedStep


@dataclass(frozen=True, slots=True)
class ElementWise(LearnedStep):
    """Gradients scaled number by number, ranges learned."""

    #: How much; in units of a step, where 0 is straight-through.
    delta: float = 0.2

    def __post_init__(self) -> None:
        if not isinstance(self.delta, int | float) or not 0.0 <= self.delta < 2.0:
            raise RecipeError(f"ewgs: delta {self.delta!r:.80} is not in [0, 2), where gradients keep their sign")

    @property
    def name(self) -> str:
        """The word for it."""
        return "ewgs"

    def __call__(self, boxes: Array, parameters: Parameters, grid: Grid, sharing: int) -> Array:
        """Return the numbers that the codes of `boxes` stand for."""
        plain = stop_gradient(boxes)
        scale, zero = self.settled({name: stop_gradient(value) for name, value in parameters.items()}, grid)
        difference = plain * (1.0 / scale) - grid.units(plain, scale, zero)
        return learned_step.rounded(shaped(boxes, difference, self.delta), parameters, grid, sharing)
