"""The gradient of a language model's loss at what its head is given, with the scores of some rows in memory at a time.

dL/dh_t = W^T (softmax(W h_t) - y_t): no row needs another's scores. Only where a model puts out what its head does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.frontends.torch.forward_attribute import get_forward, set_forward

#: Rows whose scores are there at once.
_ROWS = 128


class Withheld:
    """What a head was given while it put out zeros in the place of scores."""

    def __init__(self) -> None:
        #: By call what was given, (..., width), and what came out, (..., 1).
        self.calls: list[tuple[Tensor, Tensor]] = []

    def given(self, scores: Any) -> Tensor | None:
        """Return what the head was given, if it was called once and `scores` are what it put out, as they were."""
        if len(self.calls) != 1:
            return None
        [(given, column)] = self.calls
        return given if scores is column and not column._version else None


@contextmanager
def withheld(head: nn.Module) -> Iterator[Withheld]:
    """Have `head` keep what it is given and put out zeros, one for each row."""
    own, seen = get_forward(head), Withheld()

    def stand_in(given: Tensor) -> Tensor:
        seen.calls.append((given, given.new_zeros(*given.shape[:-1], 1)))
        return seen.calls[-1][1]

    head.forward = stand_in
    try:
        yield seen
    finally:
        set_forward(head, own)


def send_back(head: nn.Module, given: Tensor, slope_of: Callable[[Tensor], Tensor]) -> None:
    """Send the gradient of the loss back from what `head` was `given`; `slope_of` is it at scores (rows, labels)."""
    slopes: list[Tensor] = []
    for piece in torch.split(given.detach().reshape(-1, given.shape[-1]), _ROWS):
        with torch.enable_grad():
            rows = piece.clone().requires_grad_()
            scores = head.forward(rows)  # not called: hooks are for what a model does
            slopes += torch.autograd.grad(scores, rows, slope_of(scores.detach()))
    given.backward(torch.cat(slopes).reshape(given.shape))  # type: ignore[no-untyped-call]
