"""The range that numbers are rounded by in training: learned, a moving average, or as it was at the beginning.

Average: b <- b + m (b_now - b). The numbers are kept in the shape that broadcasts to what is rounded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fewbit.errors import CalibrationError
from fewbit.ranges.grid import Grid
from fewbit.training.gradients import Gradient
from fewbit.training.options import Ranges
from fewbit.training.schedule import Schedule


class TrainedRange(nn.Module):
    """Bounds, or what a gradient learns in their place."""

    started: Tensor

    def __init__(
        self, grid: Grid, gradient: Gradient, kind: Ranges, shape: tuple[int, ...], schedule: Schedule
    ) -> None:
        super().__init__()
        self.grid = grid
        self.gradient = gradient
        self.kind = kind
        # In a tuple: it is a part of the model, not of each range.
        self._schedule = (schedule,)
        zero = torch.zeros(shape)
        for name, value in gradient.initial(zero, zero, grid).items():
            if gradient.learns:
                self.register_parameter(name, nn.Parameter(value.clone()))
            else:
                self.register_buffer(name, value.clone())
        self._names = tuple((self._parameters if gradient.learns else self._buffers).keys())
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self._known = False

    @property
    def schedule(self) -> Schedule:
        """That of the run."""
        return self._schedule[0]

    @property
    def ready(self) -> bool:
        """Whether it has begun."""
        if not self._known:
            self._known = bool(self.started)  # a state_dict may have brought it
        return self._known

    @torch.no_grad()
    def start(self, low: Tensor, high: Tensor) -> None:
        """Begin with these bounds."""
        for name, value in self.gradient.initial(low, high, self.grid).items():
            own: Tensor = getattr(self, name)
            own.copy_(value.reshape(own.shape))
        self.started.fill_(True)
        self._known = True

    @torch.no_grad()
    def observe(self, low: Tensor, high: Tensor, momentum: float) -> None:
        """Move towards the bounds of this step."""
        share = self.schedule.share(momentum)
        for name, now in (("low", low), ("high", high)):
            own: Tensor = getattr(self, name)
            own.add_(share * (now.reshape(own.shape) - own))

    @property
    def parameters_by_name(self) -> dict[str, Tensor]:
        """What the gradient learns, or keeps."""
        found = {name: getattr(self, name) for name in self._names}
        if not self.ready:
            raise CalibrationError(
                "no input has reached it yet, so it has no range; run a batch in training mode, or give prepare_qat one"
            )
        return {name: self.schedule.learned(value) for name, value in found.items()} if self.gradient.learns else found

    @torch.no_grad()
    def settled(self) -> tuple[Tensor, Tensor | None]:
        """Return the scale as it is stored, and the zero point."""
        return self.gradient.settled(self.parameters_by_name, self.grid)

    def forward(self, boxes: Tensor, sharing: int) -> Tensor:
        """Return the numbers that the codes of `boxes` stand for; `sharing` numbers have a scale in common."""
        found: Tensor = self.gradient(boxes, self.parameters_by_name, self.grid, sharing)
        return found

    def extra_repr(self) -> str:
        """Return what it is, for `print(model)`."""
        return f"{self.gradient.name}, {self.kind}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *further: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *further)
        self._known = False
