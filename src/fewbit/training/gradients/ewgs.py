"""EWGS: a number's gradient g is scaled by how its step goes with its level: g (1 + delta sign(g) (v - round(v))).

v = x / scale, so that the difference is at most half a step; scales are learned as by LSQ.
Source: Lee, Kim, Ham, "Network quantization with element-wise gradient scaling", CVPR 2021, equation 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewbit.errors import RecipeError
from fewbit.ranges.grid import Grid
from fewbit.training import learned_step
from fewbit.training.gradients import Parameters


class _Shaped(torch.autograd.Function):
    """Numbers as they are, with gradients that depend on how far they are from their levels."""

    @staticmethod
    def forward(values: Tensor, difference: Tensor, delta: float) -> Tensor:  # noqa: ARG004  # as autograd calls it
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(inputs[1])
        ctx.delta = inputs[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (difference,), gradient = ctx.saved_tensors, gradients[0]
        return gradient * (1.0 + ctx.delta * gradient.sign() * difference), None, None


@dataclass(frozen=True, slots=True)
class ElementWise:
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

    @property
    def learns(self) -> bool:
        """Scales and zero points are parameters."""
        return True

    def initial(self, low: Tensor, high: Tensor, grid: Grid) -> Parameters:
        """Return scale and zero point for the bounds."""
        return learned_step.initial(low, high, grid)

    def settled(self, parameters: Parameters, grid: Grid) -> tuple[Tensor, Tensor | None]:
        """Return both as they are stored."""
        return learned_step.settled(parameters, grid)

    def __call__(self, boxes: Tensor, parameters: Parameters, grid: Grid, sharing: int) -> Tensor:
        """Return the numbers that the codes of `boxes` stand for."""
        with torch.no_grad():
            scale, zero = self.settled(parameters, grid)
            difference = boxes * (1.0 / scale) - grid.units(boxes, scale, zero)
        shaped = _Shaped.apply(boxes, difference, self.delta)  # type: ignore[no-untyped-call]
        return learned_step.rounded(shaped, parameters, grid, sharing)
