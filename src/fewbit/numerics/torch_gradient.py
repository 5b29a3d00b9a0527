"""A rounded torch tensor with the gradient of the numbers that were rounded: g where low <= x <= high, else 0.

Kept for the backward pass is a byte a number, and nothing without bounds. Source: Bengio et al. 2013, arXiv 1308.3432.
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
