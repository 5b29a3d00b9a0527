"""Steps (scales) that are learned: d(rounded)/d(scale) = round(v) - v inside the range, the end of the range outside.

v = x / scale. LSQ divides the gradient by sqrt(numbers that share the scale * largest level); LSQ+ learns the zero
point too, which moves what is clipped. Sources: Esser et al., arXiv:1902.08153; Bhalgat et al., arXiv:2004.09576.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor

from fewbit.formats.integer import Int
from fewbit.formats.scale_type import round_scale
from fewbit.numerics.rounding import passed
from fewbit.ranges.grid import Grid
from fewbit.training.gradients import Parameters

#: A scale that training would take to 0 stays above this.
_LEAST = 2.0**-100


class _Slowed(torch.autograd.Function):
    """Numbers as they are, with a gradient that is a fraction of theirs."""

    @staticmethod
    def forward(values: Tensor, factor: float) -> Tensor:  # noqa: ARG004  # as autograd calls it
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:  # noqa: ARG004
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


class _Where(torch.autograd.Function):
    """Few numbers spread over where a mask is set, 0 elsewhere; the mask is kept as it is, a byte a number."""

    @staticmethod
    def forward(values: Tensor, mask: Tensor) -> Tensor:
        return values * mask.to(values.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.shape = inputs[0].shape
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mask,), gradient = ctx.saved_tensors, gradients[0]
        return (gradient * mask.to(gradient.dtype)).sum_to_size(ctx.shape), None


def initial(low: Tensor, high: Tensor, grid: Grid) -> dict[str, Tensor]:
    """Return the scale, and the zero point of an asymmetric grid, for bounds."""
    scale, zero = grid.parameters(low, high)
    return {"scale": scale} if zero is None else {"scale": scale, "zero_point": zero}


def settled(parameters: Parameters, grid: Grid) -> tuple[Tensor, Tensor | None]:
    """Return scale and zero point as they are stored; gradients pass straight through the rounding of both."""
    scale = parameters["scale"].abs().clamp(min=_LEAST)
    scale = passed(scale, round_scale(scale.detach(), grid.scale_type))
    if "zero_point" not in parameters:
        return scale, None
    zero = parameters["zero_point"].clamp(grid.integer.qmin, grid.integer.qmax)
    return scale, passed(zero, zero.detach().round())


def rounded(boxes: Tensor, parameters: Parameters, grid: Grid, sharing: int) -> Tensor:
    """Return the numbers that the codes of `boxes` stand for; gradients reach scale and zero point."""
    largest = grid.integer.qmax if isinstance(grid.format, Int) else grid.format.levels[-1]
    factor = 1.0 / sqrt(sharing * max(largest, 1.0))
    slowed = {name: _Slowed.apply(value, factor) for name, value in parameters.items()}  # type: ignore[no-untyped-call]
    scale, zero = settled(slowed, grid)
    if zero is None:
        found: Tensor = grid.rounded(boxes, scale, None)
        return found
    fixed = zero.detach()
    units = grid.units(boxes, scale, fixed)
    places = (boxes * (1.0 / scale)).detach() + fixed
    clipped = (places < grid.integer.qmin - 0.5) | (places > grid.integer.qmax + 0.5)
    # What is clipped is the end of the range less the zero point; fixed - zero is 0 in value.
    moved: Tensor = units + _Where.apply(fixed - zero, clipped)  # type: ignore[no-untyped-call]
    return moved * scale
