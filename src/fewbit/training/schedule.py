"""What happens when in a training run: its steps are the forwards of the model in training mode.

A buffer of the model counts them, so that a run that goes on from a state_dict goes on at its step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

#: The buffer of the model.
STEP = "fewbit_step"


class Schedule:
    """Counts the steps of a model, and says from which on numbers are rounded, and ranges and norms stay."""

    def __init__(
        self, model: nn.Module, *, delay: int = 0, freeze_ranges: int | None = None, freeze_norms: int | None = None
    ) -> None:
        self.model = model
        self.delay = delay
        self.freeze_ranges = freeze_ranges
        self.freeze_norms = freeze_norms
        #: Whether ranges may begin with what they are given, outside of training too.
        self.starting = False
        device = next((tensor.device for tensor in model.parameters()), None)
        model.register_buffer(STEP, torch.zeros((), dtype=torch.int64, device=device))

    @property
    def step(self) -> Tensor:
        """How many forwards there were in training mode."""
        step: Tensor = getattr(self.model, STEP)
        return step

    def count(self, model: nn.Module, _: Any) -> None:
        """Count a forward of `model`; a hook of it."""
        if not model.training:
            return
        self.step.add_(1)
        if self.freeze_norms is not None and int(self.step) > self.freeze_norms:
            for own in model.modules():
                if isinstance(own, nn.modules.batchnorm._BatchNorm):
                    own.eval()

    def rounded(self, values: Tensor, rounded: Tensor) -> Tensor:
        """Return `rounded`, or `values` before rounding begins."""
        return torch.where(self.step > self.delay, rounded, values) if self.delay else rounded

    def share(self, momentum: float) -> Tensor | float:
        """Return how much of a new range an average takes, 0 once ranges are frozen."""
        if self.freeze_ranges is None:
            return momentum
        return torch.where(self.step > self.freeze_ranges, 0.0, momentum)

    def learned(self, values: Tensor) -> Tensor:
        """Return `values` to be learned, or without a gradient once ranges are frozen."""
        if self.freeze_ranges is None:
            return values
        return torch.where(self.step > self.freeze_ranges, values.detach(), values)

    def progress(self, steps: int) -> Tensor:
        """Return how much of `steps` is done, from 0 to 1."""
        return (self.step / steps).clamp(max=1.0)
