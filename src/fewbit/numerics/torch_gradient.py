"""Torch tensors with other gradients: a rounded one with that of what was rounded, g where low <= x <= high, else 0.

Kept for the backward pass is a byte a number, and nothing without bounds. Source: Bengio et al. 2013, arXiv 1308.3432.
The others are those of `fewbit.numerics.gradient`.
"""

from __future__ import annotations

from math import isinf
from typing import Any

import torch
from torch import Tensor


class Straight(torch.autograd.Function):
    """`rounded`, whose gradient goes to `values` between the bounds."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, rounded: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:  # noqa: ARG004
        """Return `rounded`."""
        return rounded.view_as(rounded)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Any, Any], output: Tensor) -> None:  # noqa: ARG004
        """Keep which values lie between the bounds."""
        values, _, low, high = inputs
        ctx.dtype, ctx.bounded = values.dtype, not (isinstance(low, float) and isinf(low))
        if ctx.bounded:
            ctx.save_for_backward((values >= low) & (values <= high))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the values."""
        gradient = gradients[0].to(ctx.dtype)
        if ctx.bounded:
            # A product with a float: torch's `where` and its products with bool are not vectorized on a CPU.
            gradient = gradient * ctx.saved_tensors[0].to(ctx.dtype)
        return gradient, None, None, None


class Slowed(torch.autograd.Function):
    """Numbers as they are, with a gradient that is a fraction of theirs."""

    @staticmethod
    def forward(values: Tensor, factor: float) -> Tensor:  # noqa: ARG004  # as autograd calls it
        """Return `values`."""
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:  # noqa: ARG004
        """Keep the factor."""
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the values."""
        return gradients[0] * ctx.factor, None


class WhereSet(torch.autograd.Function):
    """Few numbers spread over where a mask is set, 0 elsewhere; the mask is kept as it is, a byte a number."""

    @staticmethod
    def forward(values: Tensor, mask: Tensor) -> Tensor:
        """Return the values where the mask is set."""
        return values * mask.to(values.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG004
        """Keep the mask."""
        ctx.shape = inputs[0].shape
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the values."""
        (mask,), gradient = ctx.saved_tensors, gradients[0]
        return (gradient * mask.to(gradient.dtype)).sum_to_size(ctx.shape), None


class Shaped(torch.autograd.Function):
    """Numbers as they are, with gradients that depend on how far they are from their levels."""

    @staticmethod
    def forward(values: Tensor, difference: Tensor, delta: float) -> Tensor:  # noqa: ARG004  # as autograd calls it
        """Return `values`."""
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:  # noqa: ARG004
        """Keep the difference."""
        ctx.save_for_backward(inputs[1])
        ctx.delta = inputs[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of the values."""
        (difference,), gradient = ctx.saved_tensors, gradients[0]
        return gradient * (1.0 + ctx.delta * gradient.sign() * difference), None, None
