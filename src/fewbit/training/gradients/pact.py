"""PACT: the bounds of a range are learned from what they clip; rounding passes gradients straight through.

y = round(clip(x, low, high)), d y / d high = 1 where x > high. A symmetric range has low = -high. Source: Choi et al.,
"PACT: parameterized clipping activation for quantized neural networks", arXiv:1805.06085.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

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

    def initial(self, low: Tensor, high: Tensor, grid: Grid) -> Parameters:
        """Return the bounds, of a symmetric grid the larger of both."""
        return {"high": torch.maximum(-low, high)} if grid.symmetric else {"low": low, "high": high}

    def settled(self, parameters: Parameters, grid: Grid) -> tuple[Tensor, Tensor | None]:
        """Return scale and zero point for the bounds; no gradient reaches them through these."""
        low, high = _bounds(parameters)
        scale, zero = grid.parameters(low.detach(), high.detach())
        return scale, zero

    def __call__(self, boxes: Tensor, parameters: Parameters, grid: Grid, sharing: int) -> Tensor:  # noqa: ARG002
        """Return the numbers that the codes of `boxes` stand for."""
        low, high = _bounds(parameters)
        clipped = torch.minimum(torch.maximum(boxes, low), high)
        rounded: Tensor = grid.rounded(boxes.detach(), *self.settled(parameters, grid))
        return passed(clipped, rounded)  # type: ignore[no-any-return]


def _bounds(parameters: Parameters) -> tuple[Tensor, Tensor]:
    """Return the bounds, which hold 0."""
    high = parameters["high"].clamp(min=0.0)
    return (parameters["low"].clamp(max=0.0) if "low" in parameters else -high), high
