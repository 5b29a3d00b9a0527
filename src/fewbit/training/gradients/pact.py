"""PACT: the bounds of a range are learned from what they clip; rounding passes gradients straight through.

y = round(clip(x, low, high)), d y / d high = 1 where x > high. A symmetric range has low = -high. Source: Choi et al.,
"PACT: parameterized clipping activation for quantized neural networks", arXiv:1805.06085.
"""

from __future__ import annotations

from dataclasses import dataclass

from fewbit.numerics.gradient import at_least, at_most
from fewbit.numerics.namespace import Array, array_namespace, stop_gradient
from fewbit.numerics.rounding import passed
from fewbit.ranges.grid import Grid
from fewbit.training.gradients import Parameters


@dataclass(frozen=True, slots=True)
class LearnedClipping:
    """Bounds are learned; weight decay on them, as the paper has it, is the optimizer's."""

    @property
    def name(self) -> str:
        """The word for it."""
        return "pact"

    @property
    def learns(self) -> bool:
        """Bounds are parameters."""
        return True

    def initial(self, low: Array, high: Array, grid: Grid) -> Parameters:
        """Return the bounds, of a symmetric grid the larger of both."""
        return {"high": array_namespace(low).maximum(-low, high)} if grid.symmetric else {"low": low, "high": high}

    def settled(self, parameters: Parameters, grid: Grid) -> tuple[Array, Array | None]:
        """Return scale and zero point for the bounds; no gradient reaches them through these."""
        low, high = _bounds(parameters)
        scale, zero = grid.parameters(stop_gradient(low), stop_gradient(high))
        return scale, zero

    def __call__(self, boxes: Array, parameters: Parameters, grid: Grid, sharing: int) -> Array:  # noqa: ARG002
        """Return the numbers that the codes of `boxes` stand for."""
        low, high = _bounds(parameters)
        xp = array_namespace(boxes)
        clipped = xp.minimum(xp.maximum(boxes, low), high)
        return passed(clipped, grid.rounded(stop_gradient(boxes), *self.settled(parameters, grid)))


def _bounds(parameters: Parameters) -> tuple[Array, Array]:
    """Return the bounds, which hold 0."""
    high = at_least(parameters["high"], 0.0)
    return (at_most(parameters["low"], 0.0) if "low" in parameters else -high), high
