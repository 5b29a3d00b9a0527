"""How much an error of each number that a block puts out changes the loss: the square of the loss's gradient there.

The diagonal of the Fisher information of the output. Source: BRECQ, arXiv 2102.05426, section 3.2, equation 10.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.frontends.torch.calls import hidden
from fewbit.frontends.torch.loss_gradient import LossGradient
from fewbit.frontends.torch.resident_memory import trim


def output_curvature(loss: LossGradient, block: nn.Module, batches: Sequence[Any]) -> list[Tensor] | None:
    """Return the squared gradients at the output of `block`, of its shape, for each call of it in turn.

    The model is run as it now is. `None`: no gradient comes back to every call.
    """
    #: Of each call what the gradient comes to, and what the model goes on with.
    seen: list[tuple[Tensor, Tensor]] = []

    def leave(_: nn.Module, __: Any, output: Any) -> Any:
        own = hidden(output)
        if own is None or not own.is_floating_point() or not (own is output or type(output) is tuple):
            return output
        # A copy, since what follows may write into it; before it nothing asks for a gradient.
        end = own.detach().requires_grad_()
        seen.append((end, end.clone()))
        return seen[-1][1] if own is output else tuple(seen[-1][1] if part is own else part for part in output)

    handle = block.register_forward_hook(leave)
    found: list[Tensor] = []
    try:
        with loss.differentiated() as go_back:
            for number, batch in enumerate(batches):
                seen.clear()
                scores = go_back(number, batch)
                if scores is None or not seen:
                    return None
                for end, other in seen:
                    if end.grad is None:
                        return None
                    # What was written into is another output.
                    exact = other is scores and not other._version and not loss.labelled(scores)
                    found.append(torch.ones_like(end.grad) if exact else end.grad.square())
                trim()  # what one batch leaves behind must not add up over all of them
    finally:
        handle.remove()
    return found
